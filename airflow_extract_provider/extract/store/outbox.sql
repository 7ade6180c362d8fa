-- name: append
-- The order is that of the changes: a key's events get rising numbers. A plain insert: an id that is there already is an
-- error, no repeat to be swallowed.
insert into {extract}.outbox (id, source, object, key, type, time, revision, baseline, data)
select id, coalesce(given.source, %(source)s), coalesce(given.object, %(object)s), key, type, time, revision,
       coalesce(baseline, false), data::json
from unnest(%(ids)b::text[], %(sources)b::text[], %(objects)b::text[], %(keys)b::text[], %(types)b::text[],
            %(times)b::timestamptz[], %(revisions)b::bigint[], %(baselines)b::bool[], %(data)b::text[])
     with ordinality as given (id, source, object, key, type, time, revision, baseline, data, nth)
order by nth;

-- name: announce
-- Not waiting for the disk: there is nothing in it that could be lost.
select set_config('synchronous_commit', 'off', true), pg_notify(%(channel)s, '');

-- name: unplaced
-- Asked before anything is locked: most of the time nothing waits.
select exists (select from {extract}.outbox where place is null);

-- name: impatient
-- A process that stops in the middle must not keep the one row locked for ever, nor may others wait for ever.
select set_config('idle_in_transaction_session_timeout', '10s', true), set_config('lock_timeout', '30s', true);

-- name: lock_head
select place from {extract}.outbox_head for update;

-- name: stamp
-- A statement of its own behind the lock: only a new snapshot sees what the stamper before has placed. In the order of
-- the numbers: where a key's later event can be seen, so can its earlier ones, for they were committed before.
-- An array: its rows are then found by the index, whatever the planner thinks of the limit.
with placed as (
    update {extract}.outbox as event set place = head.place + waiting.nth
    from {extract}.outbox_head as head,
         unnest(array(select sequence from {extract}.outbox where place is null order by sequence limit %(limit)s))
         with ordinality as waiting (sequence, nth)
    where event.sequence = waiting.sequence
    returning event.sequence
), counted as (
    select count(*) as rows from placed
)
update {extract}.outbox_head as head set place = head.place + counted.rows from counted where counted.rows > 0
returning counted.rows;

-- name: read
-- Rows that are not wanted are looked at and passed over, a bounded number: `upto` tells how far, also where none is
-- wanted. Behind the last row it is the place last given, since pruning leaves gaps. Times in UTC: in another zone an instant of the year 1 or 9999 may have no calendar date to be read as.
with looked as materialized (
    select place, sequence, id, source, object, type, key, time, revision, baseline, data from {extract}.outbox
    where place > %(after)s order by place limit %(looked)s
), wanted as (
    select * from looked
    where (%(source)s::text is null or source = %(source)s::text)
      and (%(object)s::text is null or object = %(object)s::text)
      and (%(types)b::text[] is null or type = any(%(types)b::text[]))
    order by place limit %(limit)s
)
select far.upto, wanted.place, sequence, id, source, object, type, key, time at time zone 'UTC', revision, baseline, data::text
from (select case when count(looked.place) < %(looked)s then greatest(head.place, %(after)s) else max(looked.place) end
      as upto from {extract}.outbox_head as head left join looked on true group by head.place) as far
left join wanted on true
order by wanted.place;

-- name: prune
-- Of the oldest rows only: while those are to be kept, the others are not looked at. What is parked is looked up row by
-- row, in the order of the places: so the search ends with the limit.
delete from {extract}.outbox
where noted_at < statement_timestamp() - %(keep_for)s::interval
  and sequence = any(array(
      select sequence from {extract}.outbox as event
      left join lateral (
          select true as kept from {extract}.parked where parked.place = event.place limit 1
      ) as parked on true
      where event.place <= coalesce((select min(place) from {extract}.consumer),
                                    case when %(though_unread)s then 9223372036854775807 end)
        and parked.kept is null
      order by event.place limit %(limit)s
  ));
