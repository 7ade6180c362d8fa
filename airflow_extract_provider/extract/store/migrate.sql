-- name: lock
-- One migration at a time, whatever the schema: two would race for the same `create`.
select pg_advisory_xact_lock(hashtext('airflow_extract_provider.migrate'));

-- name: schema
create schema if not exists {extract};

-- name: book
create table if not exists {extract}.migration (
    number     integer primary key,
    name       text not null,
    applied_at timestamptz not null default clock_timestamp()
);

-- name: applied
select number from {extract}.migration order by number;

-- name: note
insert into {extract}.migration (number, name) values (%(number)s, %(name)s);

-- name: version
select max(number) from {extract}.migration;

-- name: record_schema
create schema if not exists {table};

-- name: record_table
create table if not exists {table} (
    key        text collate "C" primary key,
    data       jsonb not null,                             -- the record, equal as JSON to what the API sent
    version    timestamptz,                                -- the API's instant of the last change, if it has one
    revision   bigint not null default 1,                  -- how often the stored copy has changed
    raw_hash   bytea not null,                             -- of the record's own bytes (XXH3-128, if `hash` says nothing)
    applied_at timestamptz not null,                       -- Postgres's clock, at the last change of this row
    deleted_at timestamptz
);

-- name: record_columns
select attname, format_type(atttypid, atttypmod) from pg_attribute
where attrelid = to_regclass(%(table)s) and attnum > 0 and not attisdropped;
