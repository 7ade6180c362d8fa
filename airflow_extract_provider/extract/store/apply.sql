-- name: read
-- Without locks: most records have not changed, and a lock writes the row's header.
select key, raw_hash, deleted_at from {table} where key = any(%(keys)b::text[]);

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
-- Different bytes may be the same JSON (order of keys, white space): only a different value is a change.
update {table} as stored
set data = coming.data, version = coming.version, raw_hash = coming.raw_hash, revision = stored.revision + 1,
    applied_at = clock_timestamp(), deleted_at = null
from (select key, data::jsonb as data, version, raw_hash
      from unnest(%(keys)b::text[], %(data)b::text[], %(versions)b::timestamptz[], %(hashes)b::bytea[])
           as given (key, data, version, raw_hash)) as coming
where stored.key = coming.key
  and (stored.data <> coming.data or stored.version is distinct from coming.version or stored.deleted_at is not null)
returning stored.key;

-- name: delete
-- The data stays what was last known: a tombstone has none of the record's fields. A second tombstone is no change.
update {table} as stored
set version = coalesce(coming.version, stored.version), raw_hash = coming.raw_hash,
    revision = stored.revision + (stored.deleted_at is null)::int,
    applied_at = clock_timestamp(), deleted_at = coalesce(stored.deleted_at, clock_timestamp())
from unnest(%(keys)b::text[], %(versions)b::timestamptz[], %(hashes)b::bytea[]) as coming (key, version, raw_hash)
where stored.key = any(%(keys)b::text[]) and stored.key = coming.key;
