-- name: dead
-- When its webhook came; when it was parked, of one whose webhook was deleted by hand.
select parked.place, parked.nth, parked.source, parked.endpoint, parked.object, parked.key, parked.tries, parked.reason,
       coalesce(inbox.received_at, parked.parked_at)
from {extract}.inbox_parked as parked left join {extract}.inbox using (place)
where parked.dead and parked.source = coalesce(%(source)s, parked.source)
order by parked.place, parked.nth limit %(limit)s;

-- name: replay
-- As if it had not been tried. A run puts it back once: what has died again since stays dead.
with back as (
    update {extract}.inbox_parked
    set dead = false, tries = 0, due_at = clock_timestamp(), reason = '', replayed_by = %(run)s
    where source = %(source)s and dead and (%(places)b::bigint[] is null or place = any(%(places)b::bigint[]))
      and (%(endpoints)b::text[] is null or endpoint = any(%(endpoints)b::text[]))
      and (%(run)s = '' or replayed_by <> %(run)s)
    returning object
)
select object, count(*) from back group by object order by object;

-- name: elsewhere
-- What is dead and came to other addresses than these, by address.
select endpoint, count(*) from {extract}.inbox_parked
where source = %(source)s and dead and endpoint <> all(%(endpoints)b::text[])
  and (%(places)b::bigint[] is null or place = any(%(places)b::bigint[]))
group by endpoint order by endpoint;

-- name: drop
with gone as (
    delete from {extract}.inbox_parked
    where source = %(source)s and dead and (%(places)b::bigint[] is null or place = any(%(places)b::bigint[]))
    returning object
)
select object, count(*) from gone group by object order by object;

-- name: bury
-- Deliveries of which nobody can tell the source: they never wait, and are kept until a person drops them.
with found as (
    update {extract}.inbox set done_at = clock_timestamp()
    from unnest(%(dedupes)s::uuid[], %(reasons)s::text[]) as given (dedupe, reason)
    where source = %(source)s and endpoint = %(endpoint)s and inbox.dedupe = given.dedupe
    returning inbox.place, given.reason
)
insert into {extract}.inbox_parked (place, nth, source, endpoint, reason, dead)
select place, 0, %(source)s, %(endpoint)s, reason, true from found order by place;
