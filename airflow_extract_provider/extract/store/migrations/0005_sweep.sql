-- Reading everything again (sweep): what it has seen, what it has found.

create table {extract}.sweep (
    number      bigint primary key,                        -- that of the ledger row with which it began
    source      text collate "C" not null,
    object      text collate "C" not null,
    cause       text not null default '',                  -- the task instance that began it
    began_at    timestamptz not null default clock_timestamp(),
    looked_at   timestamptz not null default clock_timestamp(), -- before the API looked up what came first: earlier than
                                                           -- began_at where a cache has answered
    complete_to timestamptz,                               -- up to when the incremental walk had said that all is there
    judged_at   timestamptz,                               -- what it had not seen was counted, and noted
    ended_at    timestamptz,
    given_up    boolean not null default false,            -- it was started over
    stored      bigint,                                    -- records of the copy when the list had been read
    seen        bigint,                                    -- keys that it has seen
    absent      bigint,                                    -- those of them that were there before it began, and were not seen
    counts      jsonb not null default '{{}}',             -- what it has found, by kind
    fields      jsonb not null default '{{}}'              -- fields that changed without the version, and how often
);
create unique index sweep_open on {extract}.sweep (source, object) where ended_at is null;
create index sweep_done on {extract}.sweep (source, object, number) where ended_at is not null and not given_up;
comment on table {extract}.sweep is 'One row per sweep: from when to when, and its report.';

create table {extract}.sweep_seen (
    sweep   bigint not null,
    own     boolean not null,                              -- seen by the sweep itself; else by another walk meanwhile
    digests uuid[] not null                                -- of the keys on the pages of one transaction
);
-- Digests do not get smaller.
alter table {extract}.sweep_seen alter column digests set storage external;
create index sweep_seen_of on {extract}.sweep_seen (sweep);
comment on table {extract}.sweep_seen is 'The keys that an open sweep has seen; gone when it ends.';

-- SHA-256, cut to 16 bytes (NIST SP 800-107, section 5.1): not MD5, which a server in FIPS mode does not have.
create function {extract}.digest(key text) returns uuid language sql stable parallel safe as $$
    select encode(substr(sha256(convert_to(key, 'UTF8')), 1, 16), 'hex')::uuid
$$;

alter table {extract}.ledger
    drop constraint ledger_kind_check,
    add constraint ledger_kind_check check (kind in ('start', 'reset', 'sweep', 'edit', 'page', 'fold'));
drop index {extract}.ledger_begun;
create index ledger_begun on {extract}.ledger (source, object, walk, sequence) where kind in ('start', 'reset', 'sweep');

-- What a sweep deletes is taken out of all that is noted.
create index refetch_absent on {extract}.refetch (source, object, noted_at, key) where reason = 'absent';

-- Two maps in front of the store must never tell of rows that were written without them.
create table {extract}.hash_map (
    source text collate "C" not null,
    object text collate "C" not null,
    epoch  bigint not null default 0,                      -- grows whenever something was written without the map
    primary key (source, object)
);
comment on table {extract}.hash_map is 'Which hash maps in front of the store are still true.';
