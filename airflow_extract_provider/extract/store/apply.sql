-- name: compare
-- Without locks on records: most have not changed, and a lock writes the row's header. That there is no row is news of
-- what is deleted too; that it is deleted already is none, nor that tombstones are hashed in another way now.
-- With what differs comes the stored canonical hash, where an equal one means that there is nothing to do. If nothing
-- differs, and there is nothing else to do, the fence is held, and the ledger rows and what an open sweep has seen are
-- added by the same statement.
with stored as materialized (
    select key, version, raw_hash, canonical_hash, deleted_at from {table} where key = any(%(keys)b::text[])
), differing as materialized (
    select given.key, stored.key is not null as known,
           case when given.deleted is not true and stored.deleted_at is null
                 and given.version is not distinct from stored.version
                 and substr(given.raw_hash, 17) = substr(stored.raw_hash, 17)
                then stored.canonical_hash end as canonical
    from unnest(%(keys)b::text[], %(versions)b::timestamptz[], %(hashes)b::bytea[], %(deleted)b::bool[])
         as given (key, version, raw_hash, deleted)
    left join stored on stored.key = given.key
    where stored.key is null or given.key = any(%(also)b::text[])
       or case when given.deleted and stored.deleted_at is not null
               then given.version is not null and given.raw_hash <> stored.raw_hash
                    and (given.version is distinct from stored.version
                         or substr(given.raw_hash, 17) = substr(stored.raw_hash, 17))
               else given.raw_hash <> stored.raw_hash or given.version is distinct from stored.version
                    or given.deleted or stored.deleted_at is not null end
), held as (
    update {extract}.fence set heartbeat = clock_timestamp()
    from (select set_config('lock_timeout', %(idle)s, true) offset 0) as patience
    where source = %(source)s and object = %(object)s and walk = %(walk)s and part = %(part)s
      and number = %(number)s and %(plain)s and not exists (select from differing)
    returning clock_timestamp() as clock
), seen as (
    insert into {extract}.sweep_seen (sweep, own, digests)
    select %(sweep)s, %(own)s, array_agg({extract}.digest(key)) from held, unnest(%(keys)b::text[] || %(seen)b::text[]) as given (key)
    where %(sweep)s::bigint is not null having count(*) > 0
), appended as (
    insert into {extract}.ledger (source, object, walk, part, kind, cause, position, sent_at, records, counts)
    select %(source)s, %(object)s, %(ledger)s, %(ledger_part)s, kind, cause, position, sent_at, records, counts
    from held, rows from (jsonb_to_recordset(%(entries)s::jsonb)
                as (kind text, cause text, position jsonb, sent_at timestamptz, records bigint, counts jsonb))
         with ordinality as entry (kind, cause, position, sent_at, records, counts, nth)
    order by nth
    returning sequence
)
select key, known, canonical, null::bigint, null::timestamptz from differing
union all
select null, null, null, (select max(sequence) from appended), clock from held;

-- name: claim
-- The insert is the claim: `for update` locks nothing that does not exist yet. Whoever comes second waits here for the
-- first one's commit and gets no row back.
insert into {table} (key, data, version, raw_hash, canonical_hash, applied_at, deleted_at{names})
select claimed.key, claimed.data::jsonb, claimed.version, claimed.raw_hash, claimed.canonical_hash, clock_timestamp(),
       case when claimed.deleted then clock_timestamp() end{values}
from unnest(%(keys)b::text[], %(data)b::text[], %(versions)b::timestamptz[], %(hashes)b::bytea[],
            %(canonical)b::bytea[], %(deleted)b::bool[], %(typed)b::text[])
     with ordinality as claimed (key, data, version, raw_hash, canonical_hash, deleted, typed, place){join}
order by claimed.place
on conflict (key) do nothing
returning key;

-- name: lock
-- A second statement: only a new snapshot sees what the claim has waited for. Locked in key order, so that two batches
-- cannot wait for each other.
-- The version in UTC: in another zone an instant of the year 1 or 9999 may have no calendar date to be read as.
select key, version at time zone 'UTC', raw_hash, deleted_at, applied_at, revision, canonical_hash,
       case when %(old)s or substr(canonical_hash, 25) <> %(counted)b::bytea
                 or (%(part)s and canonical_hash is null) then data::text end
from {table}
where key = any(%(keys)b::text[])
order by key
for update;

-- name: write
-- Different bytes may be the same JSON (order of keys, white space): only a different value is a change. The hash of
-- the bytes and the version are kept all the same: or the row would be locked and looked at each time that it is read.
-- So is the canonical hash: by it the next spelling is known without a lock.
-- `differs` is null where `data` holds the whole record and can be compared here. Whatever has not changed, `data` is
-- that of the bytes whose hash is stored: what does not count today may count tomorrow. `offset 0`: otherwise the texts
-- would be read as JSON again in each place that uses them, which costs four times as much.
update {table} as stored
set data = coming.data, version = coming.version, raw_hash = coming.raw_hash,
    canonical_hash = coming.canonical_hash,
    revision = stored.revision
             + (coalesce(coming.differs, stored.data <> coming.data) or stored.deleted_at is not null)::int,
    applied_at = case when coalesce(coming.differs, stored.data <> coming.data) or stored.deleted_at is not null
                      then clock_timestamp() else stored.applied_at end,
    deleted_at = null{sets}
from (
    select given.key, given.data::jsonb as data, given.version, given.raw_hash, given.canonical_hash,
           given.differs{aliased}
    from unnest(%(keys)b::text[], %(data)b::text[], %(versions)b::timestamptz[], %(hashes)b::bytea[],
                %(canonical)b::bytea[], %(differs)b::bool[], %(typed)b::text[])
         as given (key, data, version, raw_hash, canonical_hash, differs, typed){join_given}
    offset 0
) as coming
where stored.key = coming.key and stored.key = any(%(keys)b::text[])
returning stored.key, stored.revision;

-- name: delete
-- The data stays what was last known: a tombstone has none of the record's fields. A second tombstone is no change.
update {table} as stored
set version = coalesce(coming.version, stored.version), raw_hash = coming.raw_hash,
    revision = stored.revision + (stored.deleted_at is null)::int,
    applied_at = clock_timestamp(), deleted_at = coalesce(stored.deleted_at, clock_timestamp())
from unnest(%(keys)b::text[], %(versions)b::timestamptz[], %(hashes)b::bytea[]) as coming (key, version, raw_hash)
where stored.key = any(%(keys)b::text[]) and stored.key = coming.key
returning stored.key, stored.revision;

-- name: try
-- Whether Postgres takes these texts as JSON.
select cardinality(%(data)b::text[]::jsonb[]);
