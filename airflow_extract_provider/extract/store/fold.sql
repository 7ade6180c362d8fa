-- name: lock
-- One folding at a time: two would add the same pages up twice.
select pg_advisory_xact_lock(hashtext('airflow_extract_provider.fold ' || %(schema)s));

-- name: walks
select distinct source, object, walk, part from {extract}.ledger order by 1, 2, 3, 4;

-- name: fold
-- What is old and lies between two rows that stay becomes one row, which stands where the last of them stood. What
-- stays: where the walk stands, what the cursor shows, and where it was begun or edited.
with own as (
    select *, sequence < max(sequence) over ()
              and kind in ('page', 'fold')
              and committed_at < clock_timestamp() - %(older_than)s::interval
              and sequence is distinct from max(sequence) filter (where shown) over () as old
    from {extract}.ledger
    where source = %(source)s and object = %(object)s and walk = %(walk)s and part = %(part)s
), numbered as (
    select *, count(*) filter (where not old) over (order by sequence) as run from own
), runs as (
    select run, array_agg(sequence) as sequences, max(sequence) as last, sum(coalesce(pages, 1)) as pages,
           sum(records) as records, max(sent_at) as sent_at, min(coalesce(since, committed_at)) as since
    from numbered where old group by run having count(*) > 1
), laps as (
    select run, range_agg(span) as covered
    from numbered, unnest({extract}.lap(kind, walk, position, covered)) as span where old group by run
), sums as (
    select run, jsonb_object_agg(name, total) as counts
    from (select run, name, sum(count::bigint) as total
          from numbered, jsonb_each_text(counts) as told (name, count) where old group by run, name) as counted
    group by run
), gone as (
    delete from {extract}.ledger using runs
    where sequence = any(sequences) and sequence <> last
    returning 1
), kept as (
    update {extract}.ledger as ledger
    set kind = 'fold', cause = '', pages = runs.pages, records = runs.records, sent_at = runs.sent_at,
        since = runs.since, covered = laps.covered, counts = coalesce(sums.counts, '{{}}')
    from runs left join laps using (run) left join sums using (run)
    where ledger.sequence = runs.last
)
select count(*) from gone;
