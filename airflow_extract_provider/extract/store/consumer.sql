-- name: place
select place from {extract}.consumer where name = %(consumer)s;

-- name: begin
-- The oldest row may be one that somebody else has parked, with none behind it for long: reading passes over that.
insert into {extract}.consumer (name, place)
select %(consumer)s,
       case when %(at_end)s then head.place else coalesce((select min(place) - 1 from {extract}.outbox), head.place) end
from {extract}.outbox_head as head
on conflict (name) do nothing;

-- name: lock
-- Before parked rows are changed: the consumer's own transaction locks this row first too, so neither waits in a circle.
select name from {extract}.consumer where name = %(consumer)s for update;

-- name: move
update {extract}.consumer set place = greatest(place, %(place)s), moved_at = clock_timestamp()
where name = %(consumer)s
returning place;

-- name: due
-- Those that wait have no due time, so that thousands behind one cost nothing here. A row may be due and yet not be the
-- first of its key: a dead letter before it was put back. Nor is what was parked ahead of the place. Behind a first one its followers come along, in their order.
with heads as (
    select source, object, key, place from {extract}.parked as head
    where consumer = %(consumer)s and not dead and due_at <= statement_timestamp()
      and place <= (select place from {extract}.consumer where name = %(consumer)s)
      and not exists (
          select from {extract}.parked as before
          where before.consumer = head.consumer and before.source = head.source and before.object = head.object
            and before.key = head.key and not before.dead and before.place < head.place
      )
    order by due_at, place limit %(limit)s
)
select waiting.tries, event.place, event.sequence, event.id, event.source, event.object, event.type, event.key,
       event.time at time zone 'UTC', event.revision, event.baseline, event.data::text
from heads
cross join lateral (
    select place, tries from {extract}.parked as each
    where each.consumer = %(consumer)s and each.source = heads.source and each.object = heads.object
      and each.key = heads.key and not each.dead and each.place >= heads.place
      and each.place <= (select place from {extract}.consumer where name = %(consumer)s)
    order by place limit %(limit)s
) as waiting
join {extract}.outbox as event on event.place = waiting.place
order by waiting.place limit %(limit)s;

-- name: ahead
select place from {extract}.parked
where consumer = %(consumer)s and place > (select place from {extract}.consumer where name = %(consumer)s);

-- name: blocked
-- One look at the index for each key, however many wait there.
select given.source, given.object, given.key
from unnest(%(sources)b::text[], %(objects)b::text[], %(keys)b::text[]) as given (source, object, key)
cross join lateral (
    select from {extract}.parked
    where parked.consumer = %(consumer)s and parked.source = given.source and parked.object = given.object
      and parked.key = given.key and not parked.dead
    limit 1
) as first;

-- name: unpark
delete from {extract}.parked where consumer = %(consumer)s and place = any(%(places)b::bigint[]);

-- name: park
-- Waits differ a little, so that what failed together is not tried together.
insert into {extract}.parked as parked (consumer, place, source, object, key, tries, reason, due_at, dead)
select %(consumer)s, place, source, object, key, tries, reason,
       clock_timestamp() + wait * (0.8 + 0.4 * random()), dead
from unnest(%(places)b::bigint[], %(sources)b::text[], %(objects)b::text[], %(keys)b::text[], %(tries)b::int[],
            %(reasons)b::text[], %(waits)b::interval[], %(dead)b::bool[])
     as given (place, source, object, key, tries, reason, wait, dead)
on conflict (consumer, place) do update
    set tries = excluded.tries, reason = excluded.reason, due_at = excluded.due_at, dead = excluded.dead;

-- name: wake_keys
-- Whoever waits and is now the first of its key.
with first as (
    select next.place, next.due_at
    from unnest(%(sources)b::text[], %(objects)b::text[], %(keys)b::text[]) as given (source, object, key)
    cross join lateral (
        select place, due_at from {extract}.parked
        where parked.consumer = %(consumer)s and parked.source = given.source and parked.object = given.object
          and parked.key = given.key and not parked.dead
        order by place limit 1
    ) as next
)
update {extract}.parked set due_at = clock_timestamp() from first
where parked.consumer = %(consumer)s and parked.place = first.place and first.due_at is null;

-- name: orphans
-- What was deleted from the outbox by hand cannot be handled, and would keep its key for ever. Dead letters may stay.
delete from {extract}.parked
where consumer = %(consumer)s and not dead
  and not exists (select from {extract}.outbox as event where event.place = parked.place)
returning place;

-- name: wake
with first as (
    select distinct on (source, object, key) place, due_at from {extract}.parked
    where consumer = %(consumer)s and not dead
    order by source, object, key, place
)
update {extract}.parked set due_at = clock_timestamp() from first
where parked.consumer = %(consumer)s and parked.place = first.place and first.due_at is null;

-- name: waiting
-- Cheap, since it is asked again and again: of the events behind the place only so many are looked at. Where more wait
-- than that, the consumer has to move on anyway, or nothing of what it has not passed could be pruned.
with consumer as (
    select coalesce((select place from {extract}.consumer where name = %(consumer)s),
                    (select min(place) - 1 from {extract}.outbox), head.place) as place, head.place as head
    from {extract}.outbox_head as head
)
select exists (
           select from (
               select source, object, type, row_number() over (order by event.place) as nth
               from {extract}.outbox as event
               where event.place > consumer.place order by event.place limit %(looked)s
           ) as looked
           where nth = %(looked)s
              or (%(source)s::text is null or source = %(source)s::text)
             and (%(object)s::text is null or object = %(object)s::text)
             and (%(types)b::text[] is null or type = any(%(types)b::text[]))
       )
       or exists (
           select from (
               select source, object, type, row_number() over (order by sequence) as nth from {extract}.outbox
               where place is null order by sequence limit %(looked)s
           ) as looked
           where nth = %(looked)s
              or (%(source)s::text is null or source = %(source)s::text)
             and (%(object)s::text is null or object = %(object)s::text)
             and (%(types)b::text[] is null or type = any(%(types)b::text[]))
       )
       or due.at is not null,
       consumer.head + (select count(*) from (
           select from {extract}.outbox where place is null order by sequence limit %(looked)s
       ) as unplaced),
       due.at
from consumer
cross join (
    select max(due_at) as at from {extract}.parked as head
    where consumer = %(consumer)s and not dead and due_at <= statement_timestamp()
      and not exists (
          select from {extract}.parked as before
          where before.consumer = head.consumer and before.source = head.source and before.object = head.object
            and before.key = head.key and not before.dead and before.place < head.place
      )
) as due;

-- name: dead
select parked.consumer, parked.place, parked.source, parked.object, parked.key, coalesce(event.type, ''), parked.tries,
       parked.reason, parked.parked_at
from {extract}.parked left join {extract}.outbox as event on event.place = parked.place
where parked.dead and parked.consumer = coalesce(%(consumer)s, parked.consumer)
order by parked.consumer, parked.place limit %(limit)s;

-- name: replay_dead
update {extract}.parked set dead = false, tries = 0, due_at = null
where consumer = %(consumer)s and dead and (%(places)b::bigint[] is null or place = any(%(places)b::bigint[]));

-- name: drop_dead
delete from {extract}.parked
where consumer = %(consumer)s and dead and (%(places)b::bigint[] is null or place = any(%(places)b::bigint[]));

-- name: consumers
-- The first rows behind the place are counted, for among them places may be missing: rows that others have parked outlive
-- those around them. Further on nothing is pruned yet, and the places are counted without being read.
select consumer.name, consumer.place, near.rows + greatest(head.place - near.upto, 0) + unplaced.rows, waiting.parked, waiting.dead,
       least(
           (select noted_at from {extract}.outbox where place > consumer.place order by place limit 1),
           unplaced.oldest,
           (select event.noted_at from {extract}.parked join {extract}.outbox as event on event.place = parked.place
            where parked.consumer = consumer.name and not parked.dead order by parked.place limit 1)
       )
from {extract}.consumer
cross join {extract}.outbox_head as head
cross join (select count(*) as rows, min(noted_at) as oldest from {extract}.outbox where place is null) as unplaced
cross join lateral (
    select count(*) as rows, case when count(*) < %(looked)s then head.place else max(place) end as upto
    from (
        select place from {extract}.outbox where place > consumer.place order by place limit %(looked)s
    ) as first
) as near
cross join lateral (
    select count(*) filter (where not dead) as parked, count(*) filter (where dead) as dead
    from {extract}.parked where parked.consumer = consumer.name
) as waiting
where consumer.name = coalesce(%(consumer)s, consumer.name)
order by consumer.name;

-- name: evict
-- The number grows, so that a run that is alive finds its fence gone; the row stays, or numbers would come again.
update {extract}.fence set number = number + 1, runner = null, label = null
where source = %(source)s and object = %(object)s and walk = %(walk)s and part = %(part)s;

-- name: drop_consumer
delete from {extract}.consumer where name = %(consumer)s;
