-- name: differing
-- What is stored as it comes is neither locked nor written.
select given.key, stored.key is not null
from unnest(%(keys)b::text[], %(versions)b::timestamptz[], %(hashes)b::bytea[], %(deleted)b::bool[])
     as given (key, version, raw_hash, deleted)
left join {table} as stored on stored.key = given.key
where stored.key is null or stored.raw_hash <> given.raw_hash or stored.version is distinct from given.version
   or given.deleted or stored.deleted_at is not null or given.key = any(%(also)b::text[])
order by given.key;
