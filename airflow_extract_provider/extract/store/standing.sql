-- name: standing
-- One look at each table. Counts are kept by day: from the beginning of yesterday, in UTC, is the least that holds the
-- last 24 hours.
with doors as (
    select inbox.source, inbox.endpoint,
           count(*) filter (where done_at is null) as waiting,
           0::bigint as parked,
           0::bigint as dead,
           count(*) filter (where done_at is not null and parked.place is null) as applied,
           count(*) filter (
               where done_at >= date_trunc('day', statement_timestamp(), 'UTC') and parked.place is null
           ) as today,
           min(received_at) filter (where done_at is null) as oldest,
           max(received_at) as received_at,
           0::numeric as duplicates,
           0::numeric as forged
    from {extract}.inbox left join (select distinct place from {extract}.inbox_parked) as parked using (place)
    where inbox.source = coalesce(%(source)s, inbox.source)
    group by inbox.source, inbox.endpoint
    union all
    select parked.source, parked.endpoint, 0, count(*) filter (where not dead), count(*) filter (where dead), 0, 0,
           min(coalesce(inbox.received_at, parked_at)) filter (where not dead), null, 0, 0
    from {extract}.inbox_parked as parked left join {extract}.inbox using (place)
    where parked.source = coalesce(%(source)s, parked.source)
    group by parked.source, parked.endpoint
    union all
    select source, endpoint, 0, 0, 0, 0, 0, null, max(last_at) filter (where kind in ('received', 'duplicate')),
           coalesce(sum(count) filter (where kind = 'duplicate' and recent.is), 0),
           coalesce(sum(count) filter (where kind = 'forged' and recent.is), 0)
    from {extract}.inbox_count
    cross join lateral (select day >= (statement_timestamp() at time zone 'UTC')::date - 1 as is) as recent
    where source = coalesce(%(source)s, source)
    group by source, endpoint
)
select source, endpoint, sum(waiting)::bigint, sum(parked)::bigint, sum(dead)::bigint, sum(applied)::bigint,
       sum(today)::bigint, clock_timestamp() - min(oldest), max(received_at), sum(duplicates)::bigint,
       sum(forged)::bigint
from doors group by source, endpoint order by source, endpoint;
