-- name: read
-- Without locks: most records have not changed, and a lock writes the row's header.
select key, version at time zone 'UTC', raw_hash, deleted_at from {table} where key = any(%(keys)b::text[]);

-- name: claim
-- The insert is the claim: `for update` locks nothing that does not exist yet. Whoever comes second waits here for the
-- first one's commit and gets no row back.
insert into {table} (key, data, version, raw_hash, applied_at, deleted_at)
select key, data::jsonb, version, raw_hash, clock_timestamp(), case when deleted then clock_timestamp() end
from unnest(%(keys)b::text[], %(data)b::text[], %(versions)b::timestamptz[], %(hashes)b::bytea[], %(deleted)b::bool[])
     with ordinality as claimed (key, data, version, raw_hash, deleted, place)
order by place
on conflict (key) do nothing
returning key;

-- name: lock
-- A second statement: only a new snapshot sees what the claim has waited for. Locked in key order, so that two batches
-- cannot wait for each other.
-- The version in UTC: in another zone an instant of the year 1 or 9999 may have no calendar date to be read as.
select key, version at time zone 'UTC', raw_hash, deleted_at, applied_at from {table}
where key = any(%(keys)b::text[])
order by key
for update;

-- name: write
-- Different bytes may be the same JSON (order of keys, white space): only a different value is a change. The bytes' hash
-- and the version are kept all the same: or the row would be locked and looked at each time that it is read.
with coming as (
    select given.key, given.data::jsonb as data, given.version, given.raw_hash,
           stored.data <> given.data::jsonb or stored.deleted_at is not null as changed
    from unnest(%(keys)b::text[], %(data)b::text[], %(versions)b::timestamptz[], %(hashes)b::bytea[])
         as given (key, data, version, raw_hash)
    join {table} as stored on stored.key = given.key
    where stored.key = any(%(keys)b::text[])
)
update {table} as stored
set data = case when changed then coming.data else stored.data end, version = coming.version,
    raw_hash = coming.raw_hash, revision = stored.revision + changed::int,
    applied_at = case when changed then clock_timestamp() else stored.applied_at end, deleted_at = null
from coming where stored.key = coming.key and stored.key = any(%(keys)b::text[])
returning stored.key, changed;

-- name: delete
-- The data stays what was last known: a tombstone has none of the record's fields. A second tombstone is no change.
update {table} as stored
set version = coalesce(coming.version, stored.version), raw_hash = coming.raw_hash,
    revision = stored.revision + (stored.deleted_at is null)::int,
    applied_at = clock_timestamp(), deleted_at = coalesce(stored.deleted_at, clock_timestamp())
from unnest(%(keys)b::text[], %(versions)b::timestamptz[], %(hashes)b::bytea[]) as coming (key, version, raw_hash)
where stored.key = any(%(keys)b::text[]) and stored.key = coming.key;

-- name: try
-- Whether Postgres takes these texts as JSON.
select cardinality(%(data)b::text[]::jsonb[]);
