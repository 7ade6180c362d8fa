-- The books: what has been covered (ledger), who may commit (fence), what must be read again by key (refetch).

create table {extract}.ledger (
    sequence     bigint generated always as identity primary key,
    source       text collate "C" not null,
    object       text collate "C" not null,
    walk         text collate "C" not null,
    part         text collate "C" not null default '',     -- partition or window; '' for the whole object
    kind         text not null check (kind in ('start', 'reset', 'edit', 'page')),
    cause        text not null default '',                 -- the task instance that wrote it
    position     jsonb not null,                           -- where the walk stands after this row
    sent_at      timestamptz,                              -- Postgres's clock, read before the request went out
    records      integer not null default 0,
    counts       jsonb not null default '{{}}',            -- changes by kind
    committed_at timestamptz not null default clock_timestamp(),
    shown        boolean not null default false            -- known to have been written to the cursor
);
create index ledger_walk on {extract}.ledger (source, object, walk, part, sequence desc);
comment on table {extract}.ledger is 'One row per committed page: what has been covered, and the position after it.';

create table {extract}.fence (
    source     text collate "C" not null,
    object     text collate "C" not null,
    walk       text collate "C" not null,                  -- '*' for all of the object's walks: one at a time
    part       text collate "C" not null default '',
    number     bigint not null,                            -- grows with every takeover
    runner     text,                                       -- the task instance; null: free
    label      text,                                       -- the runner's name for people
    heartbeat  timestamptz not null default clock_timestamp(),
    primary key (source, object, walk, part)
);
comment on table {extract}.fence is 'Who may commit for a walk.';

create table {extract}.refetch (
    source   text collate "C" not null,
    object   text collate "C" not null,
    key      text collate "C" not null,
    number   bigint not null default 1,                    -- raised by each note; the drain deletes only what it claimed
    reason   text not null,
    noted_at timestamptz not null default clock_timestamp(),
    primary key (source, object, key)
);
comment on table {extract}.refetch is 'Keys that must be read again by key.';
