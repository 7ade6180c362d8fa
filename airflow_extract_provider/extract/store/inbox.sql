-- name: put
-- In the order in which they came, in one statement. What is there already, with the same delivery id and the same
-- body, is passed over: the one that is there is not touched.
-- It waits for the disk, whatever the role, the database or the server says, since who was answered 2xx was promised
-- that; said in the same statement, for the transaction it is in, it costs no round trip. What is stricter stays.
-- That the wait for a standby was given up is told by a warning alone: it is sent, whatever they say.
-- A source and an endpoint that are the same for all are told once: each element that is sent costs.
with stored as (
insert into {extract}.inbox (source, endpoint, dedupe, headers, body, received_at)
select coalesce(given.source, %(source)s), coalesce(given.endpoint, %(endpoint)s), dedupe,
       coalesce(headers::jsonb, '{{}}'), body, least(given.received_at, clock_timestamp())
from (select set_config('synchronous_commit', case when current_setting('synchronous_commit') = 'remote_apply'
                                                   then 'remote_apply' else 'on' end, true),
             set_config('client_min_messages', 'warning', true) offset 0) as durable,
     unnest(%(sources)b::text[], %(endpoints)b::text[], %(dedupes)b::uuid[], %(headers)b::text[], %(bodies)b::bytea[],
            %(received)b::timestamptz[])
     with ordinality as given (source, endpoint, dedupe, headers, body, received_at, nth)
order by nth
on conflict (source, endpoint, dedupe) where dedupe is not null do nothing
returning dedupe
)
-- How many it were, too: a trigger, or a rule, keeps rows out without a word.
select count(*), coalesce(array_agg(dedupe) filter (where dedupe is not null), '{{}}') from stored;

-- name: confirm
-- Which of those that were passed over are not there: they were kept out by something else than their like. And waits,
-- where there are synchronous standbys, until they have what is there: a row may be left by a commit whose wait for
-- them was given up, and who only finds it there writes nothing, so waits for nothing. Says nothing to anybody.
select array(
    select passed.nth
    from unnest(%(sources)b::text[], %(endpoints)b::text[], %(dedupes)b::uuid[], %(nths)b::int[])
         as passed (source, endpoint, dedupe, nth)
    -- By the index, one by one: the table may be of any size.
    where (select true from {extract}.inbox
           where inbox.source = passed.source and inbox.endpoint = passed.endpoint and inbox.dedupe = passed.dedupe
             and inbox.dedupe is not null limit 1) is null
), case when current_setting('synchronous_standby_names') <> ''
        then pg_logical_emit_message(true, 'extract', '')::text end
from (select set_config('synchronous_commit', case when current_setting('synchronous_commit') = 'remote_apply'
                                                   then 'remote_apply' else 'on' end, true),
             set_config('client_min_messages', 'warning', true) offset 0) as durable;

-- name: reach
-- Whether deliveries can be stored here: the table is there, and this server writes. And whether they outlive it.
select current_setting('transaction_read_only') = 'off' and not exists (select from {extract}.inbox where false),
       (select relpersistence = 'p' from pg_class join pg_namespace on pg_namespace.oid = relnamespace
        where nspname = %(schema)s and relname = 'inbox');

-- name: announce
-- Not waiting for the disk: there is nothing in it that could be lost.
select set_config('synchronous_commit', 'off', true), pg_notify(%(channel)s, '');

-- name: count
-- In one order, whoever writes: two processes would wait for each other in a circle.
insert into {extract}.inbox_count as known (source, endpoint, day, kind, count)
select source, endpoint, day, kind, count
from unnest(%(sources)s::text[], %(endpoints)s::text[], %(days)s::date[], %(kinds)s::text[], %(counts)s::bigint[])
     as given (source, endpoint, day, kind, count)
order by source, endpoint, day, kind
on conflict (source, endpoint, day, kind) do update set count = known.count + excluded.count, last_at = excluded.last_at;

-- name: prune
-- In the order in which they were done, behind those that were looked at before: what dead messages keep is not looked
-- at again and again. A delivery and its parked messages were committed together, so none is parked later.
with looked as materialized (
    select place, done_at from {extract}.inbox
    where done_at < statement_timestamp() - %(keep_for)s::interval
      and (done_at, place) > (coalesce(%(after_at)s::timestamptz, '-infinity'), %(after)s)
    order by done_at, place limit %(limit)s
), gone as (
    delete from {extract}.inbox
    where place = any(array(
        select place from looked
        left join lateral (
            select true as kept from {extract}.inbox_parked where inbox_parked.place = looked.place limit 1
        ) as parked on true
        where parked.kept is null
    ))
    returning place
)
select (select count(*) from gone), count(*) over (), done_at, place
from looked order by done_at desc, place desc limit 1;

-- name: prune_seen
delete from {extract}.inbox_seen
where seen_at < statement_timestamp() - %(keep_for)s::interval
  and ctid = any(array(
      select ctid from {extract}.inbox_seen
      where seen_at < statement_timestamp() - %(keep_for)s::interval order by seen_at limit %(limit)s
  ));

-- name: prune_count
-- A few rows a day: no index.
delete from {extract}.inbox_count
where ctid = any(array(
    select ctid from {extract}.inbox_count
    where day < ((statement_timestamp() - %(keep_for)s::interval) at time zone 'UTC')::date limit %(limit)s
));

-- name: brought_objects
-- Step by step through the index: there is a row a change.
with recursive known (source, object) as (
    (select source, object from {extract}.brought order by source, object limit 1)
    union all
    select behind.source, behind.object
    from known cross join lateral (
        select source, object from {extract}.brought
        where (source, object) > (known.source, known.object) order by source, object limit 1) as behind
)
select source, object from known order by source, object;

-- name: prune_brought
delete from {extract}.brought
where at < statement_timestamp() - %(keep_for)s::interval
  and ctid = any(array(
      select ctid from {extract}.brought
      where source = %(source)s and object = %(object)s and at < statement_timestamp() - %(keep_for)s::interval
      order by at limit %(limit)s
  ));
