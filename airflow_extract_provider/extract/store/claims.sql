-- name: limits
-- A process that stops in the middle must not keep deliveries and records locked for ever, nor may it wait for ever.
select set_config('idle_in_transaction_session_timeout', %(idle)s, true), set_config('lock_timeout', %(idle)s, true);

-- name: claim
-- Without the bodies: only so many of those are fetched as fit. What another run has claimed is left to it.
-- Statistics are old whenever a crowd has just come. So that no plan depends on them, statements here ask for keys as
-- ranges, and in the order of the one index that they are meant for: no other has it.
select place, octet_length(body) from {extract}.inbox
where source = %(source)s and (endpoint, place) > (%(endpoint)s, %(after)s::bigint) and endpoint <= %(endpoint)s
  and done_at is null
order by endpoint, place limit %(limit)s
for update skip locked;

-- name: claim_in_order
-- Waits for another run's claim instead of passing it: where no version tells which message is newer, none is taken
-- while an older one is under way. Always from the front: a delivery whose place is lower may have been committed since
-- the last claim, and answered before its sender sent what stands behind it.
select place, octet_length(body) from {extract}.inbox
where source = %(source)s and endpoint >= %(endpoint)s and endpoint <= %(endpoint)s and done_at is null
order by endpoint, place limit %(limit)s
for update;

-- name: fetch
-- Headers as a text: few types are told by one, and psycopg would read them all.
select place, headers::text, body, received_at from {extract}.inbox where place = any(%(places)b::bigint[]) order by place;

-- name: done
update {extract}.inbox set done_at = clock_timestamp() where place = any(%(places)b::bigint[]);

-- name: due
-- The first of its key only. What stands behind it comes with it; a body that cannot be read has no key, and waits for
-- nobody. The longest due first: who is not due is not read.
select place, nth, tries, object, key,
       (select octet_length(body) from {extract}.inbox where inbox.place = parked.place) as size
from {extract}.inbox_parked as parked
where source = %(source)s and endpoint = %(endpoint)s and not dead and due_at <= clock_timestamp()
  and case when parked.key = '' then true else (parked.place, parked.nth) = (
      select before.place, before.nth from {extract}.inbox_parked as before
      where before.source = parked.source and before.endpoint = parked.endpoint and not before.dead
        and (before.object, before.key) >= (parked.object, parked.key)
      order by before.object, before.key, before.place, before.nth limit 1
  ) end
order by due_at limit %(limit)s
for update skip locked;

-- name: behind
-- Who holds the first of a key holds the key.
select run.place, run.nth, run.tries, run.object, run.key,
       (select octet_length(body) from {extract}.inbox where inbox.place = run.place) as size
from unnest(%(objects)b::text[], %(keys)b::text[], %(places)b::bigint[], %(nths)b::int[])
     as head (object, key, place, nth)
cross join lateral (
    select place, nth, tries, object, key from {extract}.inbox_parked as parked
    where parked.source = %(source)s and parked.endpoint = %(endpoint)s and not parked.dead
      and (parked.object, parked.key, parked.place, parked.nth) > (head.object, head.key, head.place, head.nth)
      and (parked.object, parked.key) <= (head.object, head.key)
    order by object, key, place, nth limit %(each)s
) as run
order by run.place, run.nth;

-- name: blocked
-- Keys of which an older message is parked. Locked: whoever is about to apply it is waited for, or what is parked
-- behind it now would be woken by nobody.
select held.object, held.key
from unnest(%(objects)b::text[], %(keys)b::text[]) as given (object, key)
cross join lateral (
    select object, key from {extract}.inbox_parked as parked
    where parked.source = %(source)s and parked.endpoint = %(endpoint)s and not parked.dead
      and (parked.object, parked.key) >= (given.object, given.key)
      and (parked.object, parked.key) <= (given.object, given.key)
    order by object, key, place, nth
    for key share
) as held;

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
-- By the primary key in any case, as below: `is true` keeps the pairs from being joined, in whatever order.
with given as materialized (
    select place, nth from unnest(%(places)b::bigint[], %(nths)b::int[]) as given (place, nth)
)
delete from {extract}.inbox_parked
where place = any(array(select place from given)) and ((place, nth) in (select place, nth from given)) is true;

-- name: wake
-- Whoever waits and is now the first of its key.
with first as materialized (
    select place, nth from (
        select distinct on (object, key) place, nth, due_at from {extract}.inbox_parked
        where source = %(source)s and endpoint = %(endpoint)s and not dead
        order by object, key, place, nth
    ) as head where due_at is null
)
update {extract}.inbox_parked set due_at = clock_timestamp()
where place = any(array(select place from first)) and ((place, nth) in (select place, nth from first)) is true;

-- name: wake_keys
-- The same of some keys.
with first as materialized (
    select next.place, next.nth
    from unnest(%(objects)b::text[], %(keys)b::text[]) as given (object, key)
    cross join lateral (
        select place, nth, due_at from {extract}.inbox_parked as parked
        where parked.source = %(source)s and parked.endpoint = %(endpoint)s and not parked.dead
          and (parked.object, parked.key) >= (given.object, given.key)
          and (parked.object, parked.key) <= (given.object, given.key)
        order by object, key, place, nth limit 1
    ) as next
    where next.due_at is null
)
update {extract}.inbox_parked set due_at = clock_timestamp()
where place = any(array(select place from first)) and ((place, nth) in (select place, nth from first)) is true;

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
-- Cheap, since it is asked again and again. What is new shows by the newest place, and by the newest that became due;
-- each is found from its end, address by address. Only what a run would take: of parked messages the first of its key.
-- Null: at any address, of which an index tells one after the other.
with recursive of_inbox (endpoint) as (
    (
        select endpoint from {extract}.inbox
        where %(endpoints)b::text[] is null and source = %(source)s and done_at is null order by endpoint, place limit 1
    )
    union all
    select (
        select inbox.endpoint from {extract}.inbox
        where inbox.source = %(source)s and inbox.done_at is null and inbox.endpoint > of_inbox.endpoint
        order by inbox.endpoint, inbox.place limit 1
    ) from of_inbox where of_inbox.endpoint is not null
), of_parked (endpoint) as (
    (
        select endpoint from {extract}.inbox_parked
        where %(endpoints)b::text[] is null and source = %(source)s and not dead and due_at is not null
        order by endpoint, due_at limit 1
    )
    union all
    select (
        select parked.endpoint from {extract}.inbox_parked as parked
        where parked.source = %(source)s and not parked.dead and parked.due_at is not null
          and parked.endpoint > of_parked.endpoint
        order by parked.endpoint, parked.due_at limit 1
    ) from of_parked where of_parked.endpoint is not null
), address as (
    select unnest(%(endpoints)b::text[]) as endpoint
    union select endpoint from of_inbox
    union select endpoint from of_parked
), found as (
    select max(latest.place) as place, max(due.at) as due_at
    from address
    left join lateral (
        select place from {extract}.inbox
        where source = %(source)s and done_at is null
          and inbox.endpoint >= address.endpoint and inbox.endpoint <= address.endpoint
        order by inbox.endpoint desc, place desc limit 1
    ) as latest on true
    left join lateral (
        select parked.due_at as at from {extract}.inbox_parked as parked
        where source = %(source)s and parked.endpoint = address.endpoint and not dead
          and due_at <= statement_timestamp()
          and case when parked.key = '' then true else (parked.place, parked.nth) = (
              select before.place, before.nth from {extract}.inbox_parked as before
              where before.source = parked.source and before.endpoint = parked.endpoint and not before.dead
                and (before.object, before.key) >= (parked.object, parked.key)
              order by before.object, before.key, before.place, before.nth limit 1
          ) end
        order by due_at desc limit 1
    ) as due on true
)
select place is not null or due_at is not null, coalesce(place, 0), due_at from found;
