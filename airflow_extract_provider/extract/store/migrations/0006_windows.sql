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

-- A window counts if it was read behind the last start of the backfill, which begins the copy anew.
create or replace view {extract}.covered as
with begun as (
    select source, object, walk, max(sequence) as sequence from {extract}.ledger
    where kind in ('start', 'reset') and part = '' group by source, object, walk
), laps as (
    select done.source, done.object, {extract}.lap(kind, done.walk, position, covered) as lap
    from {extract}.ledger as done left join begun
         on (begun.source, begun.object) = (done.source, done.object)
            and begun.walk = case when done.walk = 'window' then 'backfill' else done.walk end
    where (part = '' or done.walk = 'window')
      and ((kind = 'page' and position ->> 'complete' = 'true') or covered is not null)
      and done.sequence > coalesce(begun.sequence, 0)
)
select source, object, range_agg(span) as spans from laps, unnest(lap) as span group by source, object;
