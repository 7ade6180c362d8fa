-- name: head
-- The newest row of a walk: where it stands.
select sequence, kind, position from {extract}.ledger
where source = %(source)s and object = %(object)s and walk = %(walk)s and part = %(ledger_part)s
order by -sequence limit 1;

-- name: extend
-- Rows in this order, their numbers rise with it.
insert into {extract}.ledger (source, object, walk, part, kind, cause, position, sent_at, records, counts)
select %(source)s, %(object)s, %(ledger)s, %(ledger_part)s, kind, cause, position, sent_at, records, counts
from rows from (jsonb_to_recordset(%(entries)s::jsonb)
            as (kind text, cause text, position jsonb, sent_at timestamptz, records bigint, counts jsonb))
     with ordinality as entry (kind, cause, position, sent_at, records, counts, nth)
order by nth
returning sequence, clock_timestamp();

-- name: row
select position, sequence >= coalesce((
      select max(sequence) from {extract}.ledger
      where source = %(source)s and object = %(object)s and walk = %(walk)s and part = %(ledger_part)s and kind in ('start', 'reset', 'sweep')), 0), shown
from {extract}.ledger
where source = %(source)s and object = %(object)s and walk = %(walk)s and part = %(ledger_part)s and sequence = %(sequence)s;

-- name: shown
-- The last row known to have been written to the cursor; null: none ever was.
select max(sequence) from {extract}.ledger
where source = %(source)s and object = %(object)s and walk = %(walk)s and part = %(ledger_part)s and shown;

-- name: show
update {extract}.ledger set shown = true where sequence = %(sequence)s;

-- name: covered
-- The newest row since the last reset that stood at a place and was as complete as that: only what has been covered
-- may be gone back to. Counts and anchors are left out, a person may not have kept them.
select sequence, position from {extract}.ledger
where source = %(source)s and object = %(object)s and walk = %(walk)s and part = %(ledger_part)s
  and sequence >= coalesce((
      select max(sequence) from {extract}.ledger
      where source = %(source)s and object = %(object)s and walk = %(walk)s and part = %(ledger_part)s and kind in ('start', 'reset', 'sweep')), 0)
  and position -> 'complete' = %(complete)s
  and position -> 'place' @> %(spot)s
order by sequence desc limit 1;

-- name: totals
-- What one task instance has done, over all its tries and slices. Deletes by a sweep, and its end, are no pages.
with own as (
    select records, counts, sent_at from {extract}.ledger
    where source = %(source)s and object = %(object)s and walk = %(walk)s and part = %(ledger_part)s and cause = %(cause)s
      and cause <> '' and kind = 'page'
)
select 'pages', count(sent_at) from own
union all select 'records', coalesce(sum(records), 0)::bigint from own
union all select name, sum(count::bigint)::bigint from own, jsonb_each_text(counts) as told (name, count) group by name;

-- name: reset_by
select 1 from {extract}.ledger
where source = %(source)s and object = %(object)s and walk = %(walk)s and part = %(ledger_part)s and kind = 'reset' and cause = %(cause)s
limit 1;

-- name: outdated
select 1 from (
    select sequence, cause, position ->> 'complete' = 'true' as complete from {extract}.ledger
    where source = %(source)s and object = %(object)s and walk = %(walk)s and part = %(ledger_part)s
    order by -sequence limit 1
) as head
where (complete and cause <> %(cause)s)
   or sequence < (select max(sequence) from {extract}.ledger
                  where source = %(source)s and object = %(object)s and walk = 'backfill' and part = ''
                    and kind in ('start', 'reset'));

-- name: empty
select not exists (select from {table});
