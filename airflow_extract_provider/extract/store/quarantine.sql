-- name: set_aside
-- In the order of the digests: two transactions cannot wait for each other. The last look counts: it shows that the API
-- still had the record like this then.
insert into {extract}.quarantine as noted (source, object, page, number, key, raw, digest, why, sent_at, cause)
select %(source)s, %(object)s, %(page)s, number, key, raw, digest, why, %(sent_at)s, %(cause)s
from unnest(%(numbers)b::int[], %(keys)b::text[], %(raws)b::bytea[], %(digests)b::bytea[], %(whys)b::text[])
     as given (number, key, raw, digest, why)
order by digest
on conflict (source, object, digest) do update
    set page = excluded.page, number = excluded.number, key = excluded.key, why = excluded.why,
        sent_at = greatest(noted.sent_at, excluded.sent_at), cause = excluded.cause,
        seen = noted.seen + 1, seen_at = clock_timestamp();

-- name: listed
select id, source, object, page, number, key, why, seen, noted_at, seen_at, raw from {extract}.quarantine
where source = coalesce(%(source)s, source) and object = coalesce(%(object)s, object)
order by source, object, page, number, id limit %(limit)s;

-- name: ids
-- The last look first: what a replay stores is not written over by an older look.
select id from {extract}.quarantine
where source = %(source)s and object = %(object)s
order by sent_at desc, number desc, id desc limit %(limit)s;

-- name: take
with taken as (
    select id, page, number, raw, sent_at from {extract}.quarantine where id = any(%(ids)b::bigint[])
    order by digest for update
)
select id, page, number, raw, sent_at from taken order by sent_at desc, number desc, id desc;

-- name: delete
delete from {extract}.quarantine where id = any(%(ids)b::bigint[]);

-- name: keep
update {extract}.quarantine as noted set why = given.why, key = coalesce(given.key, noted.key)
from unnest(%(ids)b::bigint[], %(keys)b::text[], %(whys)b::text[]) as given (id, key, why)
where noted.id = given.id;

-- name: stored
-- When the rows of some keys were last changed, and their versions.
select key, applied_at, version at time zone 'UTC' from {table} where key = any(%(keys)b::text[]);
