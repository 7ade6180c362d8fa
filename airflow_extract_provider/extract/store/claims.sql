-- name: limits
-- A process that stops in the middle must not keep deliveries and records locked for ever, nor may it wait for ever.
select set_config('idle_in_transaction_session_timeout', %(idle)s, true), set_config('lock_timeout', %(idle)s, true);

-- name: claim
-- Without the bodies: only so many of those are fetched as fit. What another run has claimed is left to it.
select place, octet_length(body) from {extract}.inbox
where source = %(source)s and endpoint = %(endpoint)s and done_at is null
order by place limit %(limit)s
for update skip locked;

-- name: claim_in_order
-- Waits for another run's claim instead of passing it: where no version tells which message is newer, none is taken
-- while an older one is under way.
select place, octet_length(body) from {extract}.inbox
where source = %(source)s and endpoint = %(endpoint)s and done_at is null
order by place limit %(limit)s
for update;

-- name: fetch
select place, headers, body, received_at from {extract}.inbox where place = any(%(places)b::bigint[]) order by place;

-- name: done
update {extract}.inbox set done_at = clock_timestamp() where place = any(%(places)b::bigint[]);

-- name: due
-- The first of its key only. What stands behind it comes with it; a body that cannot be read has no key, and waits for
-- nobody.
select place, nth, tries, object, key,
       (select octet_length(body) from {extract}.inbox where inbox.place = parked.place) as size
from {extract}.inbox_parked as parked
where source = %(source)s and endpoint = %(endpoint)s and not dead and due_at <= clock_timestamp()
  and (key = '' or not exists (
      select from {extract}.inbox_parked as before
      where before.source = parked.source and before.object = parked.object and before.key = parked.key
        and before.endpoint = parked.endpoint and not before.dead
        and (before.place, before.nth) < (parked.place, parked.nth)
  ))
order by place, nth limit %(limit)s
for update skip locked;

-- name: behind
-- Who holds the first of a key holds the key.
select run.place, run.nth, run.tries, run.object, run.key,
       (select octet_length(body) from {extract}.inbox where inbox.place = run.place) as size
from unnest(%(objects)b::text[], %(keys)b::text[], %(places)b::bigint[], %(nths)b::int[])
     as head (object, key, place, nth)
cross join lateral (
    select place, nth, tries, object, key from {extract}.inbox_parked as parked
    where parked.source = %(source)s and parked.endpoint = %(endpoint)s and parked.object = head.object
      and parked.key = head.key and not parked.dead and (parked.place, parked.nth) > (head.place, head.nth)
    order by place, nth limit %(each)s
) as run
order by run.place, run.nth;

-- name: blocked
-- Keys of which an older message is parked. Locked: whoever is about to apply it is waited for, or what is parked behind
-- it now would be woken by nobody.
select parked.object, parked.key
from unnest(%(objects)b::text[], %(keys)b::text[]) as given (object, key)
join {extract}.inbox_parked as parked
  on parked.source = %(source)s and parked.endpoint = %(endpoint)s and parked.object = given.object
 and parked.key = given.key and not parked.dead
order by parked.place, parked.nth
for key share of parked;

-- name: park
-- Waits differ a little, so that what failed together is not tried together.
insert into {extract}.inbox_parked as parked
    (place, nth, source, endpoint, object, key, tries, reason, due_at, dead)
select place, nth, %(source)s, %(endpoint)s, object, key, tries, reason,
       clock_timestamp() + wait * (0.8 + 0.4 * random()), dead
from unnest(%(places)b::bigint[], %(nths)b::int[], %(objects)b::text[], %(keys)b::text[], %(tries)b::int[],
            %(reasons)b::text[], %(waits)b::interval[], %(dead)b::bool[])
     as given (place, nth, object, key, tries, reason, wait, dead)
on conflict (place, nth) do update
    set object = excluded.object, key = excluded.key, tries = excluded.tries, reason = excluded.reason,
        due_at = excluded.due_at, dead = excluded.dead;

-- name: unpark
delete from {extract}.inbox_parked as parked
using unnest(%(places)b::bigint[], %(nths)b::int[]) as given (place, nth)
where parked.place = given.place and parked.nth = given.nth;

-- name: wake
-- Whoever waits and is now the first of its key.
with first as (
    select distinct on (object, key) place, nth, due_at from {extract}.inbox_parked
    where source = %(source)s and endpoint = %(endpoint)s and not dead
    order by object, key, place, nth
)
update {extract}.inbox_parked as parked set due_at = clock_timestamp() from first
where parked.place = first.place and parked.nth = first.nth and first.due_at is null;

-- name: wake_keys
-- The same of some keys.
with first as (
    select next.place, next.nth, next.due_at
    from unnest(%(objects)b::text[], %(keys)b::text[]) as given (object, key)
    cross join lateral (
        select place, nth, due_at from {extract}.inbox_parked as parked
        where parked.source = %(source)s and parked.endpoint = %(endpoint)s and parked.object = given.object
          and parked.key = given.key and not parked.dead
        order by place, nth limit 1
    ) as next
)
update {extract}.inbox_parked as parked set due_at = clock_timestamp() from first
where parked.place = first.place and parked.nth = first.nth and first.due_at is null;

-- name: see
-- In the order of the ids, so that two runs cannot wait for each other.
insert into {extract}.inbox_seen (source, endpoint, id)
select %(source)s, %(endpoint)s, id from unnest(%(ids)b::text[]) as given (id) order by id
on conflict (source, endpoint, id) do nothing
returning id;

-- name: count
insert into {extract}.inbox_count as known (source, endpoint, day, kind, count)
select %(source)s, %(endpoint)s, (clock_timestamp() at time zone 'UTC')::date, kind, count
from unnest(%(kinds)b::text[], %(counts)b::bigint[]) as given (kind, count)
order by kind
on conflict (source, endpoint, day, kind) do update
    set count = known.count + excluded.count, last_at = clock_timestamp();

-- name: keep_still
-- A rename of the object waits until the transaction has ended; walks, which only note that they are alive, do not.
select object from {extract}.fence
where source = %(source)s and object = any(%(objects)b::text[]) and walk = '*' and part = ''
order by object
for key share;

-- name: standing
-- A second statement: it sees what a rename has done, for which the first has waited.
select given.object,
       exists (select from {extract}.ledger where ledger.source = %(source)s and ledger.object = given.object),
       owner.schema, owner.name
from unnest(%(objects)b::text[]) as given (object)
left join {extract}.owner on owner.source = %(source)s and owner.object = given.object
order by given.object;

-- name: forwarded
select id from {extract}.outbox where id = any(%(ids)b::text[]);

-- name: left
-- What waits: deliveries, parked messages that will be tried, dead ones; and how many of the first two at addresses that
-- are not among these.
select (select count(*) from {extract}.inbox
        where source = %(source)s and endpoint = any(%(endpoints)b::text[]) and done_at is null),
       count(*) filter (where not dead and endpoint = any(%(endpoints)b::text[])),
       count(*) filter (where dead),
       (select count(*) from {extract}.inbox
        where source = %(source)s and endpoint <> all(%(endpoints)b::text[]) and done_at is null)
       + count(*) filter (where not dead and endpoint <> all(%(endpoints)b::text[]))
from {extract}.inbox_parked where source = %(source)s;

-- name: waiting
-- Cheap, since it is asked again and again. What is new shows by the newest place, and by the newest that became due.
-- Only what a run would take: of parked messages the first of its key. Null: at any address.
select exists (
           select from {extract}.inbox
           where source = %(source)s and done_at is null
             and (%(endpoints)b::text[] is null or endpoint = any(%(endpoints)b::text[]))
       ) or due.at is not null,
       coalesce((select max(place) from {extract}.inbox
                 where source = %(source)s and done_at is null
                   and (%(endpoints)b::text[] is null or endpoint = any(%(endpoints)b::text[]))), 0),
       due.at
from (
    select max(due_at) as at from {extract}.inbox_parked as parked
    where source = %(source)s and not dead and due_at <= statement_timestamp()
      and (%(endpoints)b::text[] is null or endpoint = any(%(endpoints)b::text[]))
      and (key = '' or not exists (
          select from {extract}.inbox_parked as before
          where before.source = parked.source and before.object = parked.object and before.key = parked.key
            and before.endpoint = parked.endpoint and not before.dead
            and (before.place, before.nth) < (parked.place, parked.nth)
      ))
) as due;
