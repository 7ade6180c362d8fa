-- Windows of time that are read by themselves (walk `window`, one `part` each) are covered too.

create or replace function {extract}.lap(kind text, walk text, stood jsonb, covered tstzmultirange) returns tstzmultirange
language sql stable parallel safe as $$
    select case
        when kind = 'fold' then covered
        when kind = 'page' and stood ->> 'complete' = 'true' and walk = 'window'
        then case when told.closed > told.since then tstzmultirange(tstzrange(told.since, told.closed, '[)')) end
        when kind = 'page' and stood ->> 'complete' = 'true' and told.closed >= coalesce(told.since, '-infinity')
        then tstzmultirange(tstzrange(told.since, told.closed, '[]'))
    end
    from (select (stood ->> 'since')::timestamptz as since,
                 coalesce((stood ->> 'closed')::timestamptz,
                          case when walk = 'backfill' then (stood ->> 'began_at')::timestamptz end) as closed) as told
$$;

-- What was read of another copy says nothing of this one: of a table that was begun anew when it was empty, or as another
-- source file said. A window counts besides only behind the last start of the backfill.
create or replace view {extract}.covered as
with begun as (
    select source, object, walk, max(sequence) as sequence from {extract}.ledger
    where kind in ('start', 'reset') and part = '' group by source, object, walk
), copies as (
    select known.source, known.object, coalesce(birth.sequence, 0) as born, filled.made
    from (select distinct source, object from begun) as known
    left join {extract}.birth on (birth.source, birth.object) = (known.source, known.object)
    left join lateral (
        select position ->> 'made' as made from {extract}.ledger
        where (source, object, walk, part) = (known.source, known.object, 'backfill', '')
        order by -sequence limit 1
    ) as filled on true
), laps as (
    select done.source, done.object, {extract}.lap(kind, done.walk, position, covered) as lap
    from {extract}.ledger as done
    left join copies on (copies.source, copies.object) = (done.source, done.object)
    left join begun on (begun.source, begun.object) = (done.source, done.object)
         and begun.walk = case when done.walk = 'window' then 'backfill' else done.walk end
    where (part = '' or done.walk = 'window')
      and ((kind = 'page' and position ->> 'complete' = 'true') or covered is not null)
      and done.sequence > greatest(coalesce(begun.sequence, 0), coalesce(copies.born, 0))
      and coalesce(position ->> 'made' = copies.made, true)
)
select source, object, range_agg(span) as spans from laps, unnest(lap) as span group by source, object;
