-- name: note
-- The same revision again: of a table that was filled anew. A webhook may have come before, and have asked only for the
-- record to be read.
insert into {extract}.brought as known (source, object, key, revision, version, kind, by, due_at, told_at)
select %(source)s, %(object)s, key, revision, version, kind, by,
       case when by <> 'webhook' then clock_timestamp() + grace end,
       case when by = 'webhook' then clock_timestamp()
            else (select noted.told_at from {extract}.refetch as noted
                  where noted.source = %(source)s and noted.object = %(object)s and noted.key = given.key) end
from unnest(%(keys)b::text[], %(revisions)b::bigint[], %(versions)b::timestamptz[], %(kinds)b::text[], %(by)b::text[],
            %(graces)b::interval[])
     as given (key, revision, version, kind, by, grace)
order by key, revision
on conflict (source, object, key, revision) do update
    set version = excluded.version, kind = excluded.kind, by = excluded.by, at = clock_timestamp(),
        due_at = excluded.due_at, told_at = excluded.told_at;

-- name: tell
-- A webhook came of what something else has brought already: of the change with its version, else of the newest one of
-- its kind, if that was not long before.
with told as (
    select distinct on (mine.key, mine.revision) mine.key, mine.revision, given.received_at
    from unnest(%(keys)b::text[], %(versions)b::timestamptz[], %(received)b::timestamptz[], %(gone)b::bool[])
         as given (key, version, received_at, gone)
    cross join lateral (
        select known.key, known.revision from {extract}.brought as known
        where known.source = %(source)s and known.object = %(object)s and known.key = given.key
          and known.told_at is null and (known.kind = 'deleted') = coalesce(given.gone, false)
          and case when given.version is null or known.version is null
                   then known.due_at > given.received_at
                   else known.version = given.version end
        order by known.revision desc limit 1
    ) as mine
    order by mine.key, mine.revision, given.received_at
)
update {extract}.brought as known set told_at = told.received_at from told
where known.source = %(source)s and known.object = %(object)s and known.key = told.key
  and known.revision = told.revision and known.told_at is null;
