-- name: objects
-- Step by step through the index: the ledger has a row a page.
with recursive known (source, object) as (
    (select source, object from {extract}.ledger order by source, object limit 1)
    union all
    select behind.source, behind.object
    from known cross join lateral (
        select source, object from {extract}.ledger
        where (source, object) > (known.source, known.object) order by source, object limit 1) as behind
)
select source, object from known order by source, object;

-- name: knows
select exists (select from {extract}.ledger where source = {source} and object = {object});

-- name: walks
with recursive known (walk) as (
    (select walk from {extract}.ledger where source = %(source)s and object = %(object)s order by walk limit 1)
    union all
    select behind.walk
    from known cross join lateral (
        select walk from {extract}.ledger
        where source = %(source)s and object = %(object)s and walk > known.walk order by walk limit 1) as behind
)
select walk from known order by walk;

-- name: doors
-- The endpoints at which webhooks wait, step by step through the index.
with recursive known (source, endpoint) as (
    (select source, endpoint from {extract}.inbox where done_at is null order by source, endpoint limit 1)
    union all
    select behind.source, behind.endpoint
    from known cross join lateral (
        select source, endpoint from {extract}.inbox
        where done_at is null and (source, endpoint) > (known.source, known.endpoint)
        order by source, endpoint limit 1) as behind
)
select source, endpoint from known order by source, endpoint;

-- name: is_there
select to_regclass(%(name)s) is not null;

-- name: holds_rows
select exists (select from {table});

-- name: own_columns
-- Of a record table: the columns that somebody has added.
select attname from pg_attribute
where attrelid = to_regclass(%(name)s) and attnum > 0 and not attisdropped and attgenerated = '' and attname <> all(%(ours)s)
order by attnum;
