-- Whose records a table holds: no two objects write one table, and no table is dropped as another one's.

create table {extract}.owner (
    source text collate "C" not null,
    object text collate "C" not null,
    schema text collate "C" not null,
    name   text collate "C" not null,                      -- the record table's
    primary key (source, object),
    unique (schema, name)
);
comment on table {extract}.owner is 'Which object writes which record table.';
