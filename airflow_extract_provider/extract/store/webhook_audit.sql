-- name: changes
select source, object, day, webhook, poll, sweep, refetch, late, missed, expected from {extract}.webhook_audit
where (%(source)s::text is null or source = %(source)s) and day > (clock_timestamp() at time zone 'UTC')::date - %(days)s::int
order by day desc, source, object;

-- name: today
-- Of one object; since midnight in UTC only, found by the index.
select count(*) filter (where by = 'webhook'), count(*) filter (where by <> 'webhook'),
       count(*) filter (where by <> 'webhook' and told_at is not null),
       count(*) filter (where told_at is null and due_at < clock_timestamp()),
       count(*) filter (where told_at is null and due_at >= clock_timestamp())
from {extract}.brought
where source = %(source)s and object = %(object)s
  and at >= date_trunc('day', clock_timestamp() at time zone 'UTC') at time zone 'UTC';

-- name: silent
-- Since when no webhook has told of any change, how many changes were found otherwise since, and by when the newest of
-- them should have been told of.
select told.last, missed.count, missed.due_at
from (
    select max(told_at) as last from {extract}.brought where source = %(source)s and object = %(object)s
) as told
cross join lateral (
    select count(*) as count, max(due_at) as due_at from {extract}.brought
    where source = %(source)s and object = %(object)s and told_at is null and due_at < clock_timestamp()
      and (told.last is null or at > told.last)
) as missed;

-- name: waiting
-- How many webhooks wait, and since when the oldest does, if it came in time to tell of what is missed. By the index of
-- what waits; null: at any address.
select told.count, oldest.received_at
from (
    select sum(count)::bigint as count, min(place) as place from (
        select count(*) as count, min(place) as place from {extract}.inbox
        where source = %(source)s and done_at is null
          and (%(endpoints)s::text[] is null or endpoint = any(%(endpoints)s::text[]))
        group by endpoint) as waits
) as told
join {extract}.inbox as oldest on oldest.place = told.place
where oldest.received_at <= %(due_at)s;

-- name: counts
select source, endpoint, day, kind, count, last_at from {extract}.inbox_count
where (%(source)s::text is null or source = %(source)s) and day > (clock_timestamp() at time zone 'UTC')::date - %(days)s::int
order by day desc, source, endpoint, kind;
