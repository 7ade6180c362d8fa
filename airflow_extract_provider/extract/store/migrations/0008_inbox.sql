-- Webhooks: where they wait (inbox), what of them could not be applied yet, which ids came, how many, and what brought
-- each change.

create table {extract}.inbox (
    place       bigint generated always as identity primary key,
    source      text collate "C" not null,
    endpoint    text collate "C" not null,
    dedupe      uuid,                                      -- digest of delivery id and body; null: whatever comes counts
    headers     jsonb not null default '{{}}',             -- those that the endpoint keeps
    body        bytea not null,                            -- as it came, and was verified
    received_at timestamptz not null default clock_timestamp(),
    done_at     timestamptz                                -- taken out: applied, or its messages parked; null: it waits
) with (toast_tuple_target = 8160, autovacuum_vacuum_scale_factor = 0.05);
alter table {extract}.inbox alter column body set storage external;
create index inbox_waiting on {extract}.inbox (source, endpoint, place) where done_at is null;
create unique index inbox_once on {extract}.inbox (source, endpoint, dedupe) where dedupe is not null;
create index inbox_done on {extract}.inbox (done_at) where done_at is not null;
comment on table {extract}.inbox is 'Webhooks as they came: verified, stored before they were answered.';

create table {extract}.inbox_parked (
    place     bigint not null,                             -- of the inbox
    nth       integer not null,                            -- which message of the body, from 1; 0: the body is unreadable
    source    text collate "C" not null,
    endpoint  text collate "C" not null,
    object    text collate "C" not null default '',
    key       text collate "C" not null default '',
    tries     integer not null default 0,                  -- 0: not tried yet, it waits behind another of its key
    due_at    timestamptz,                                 -- null: when those of its key before it are through
    reason    text not null default '',
    dead      boolean not null default false,              -- tried in vain; waits for a person
    parked_at timestamptz not null default clock_timestamp(),
    replayed_by text not null default '',                  -- the run that has put it back last; '': a command, or none
    primary key (place, nth)
);
create index inbox_parked_key on {extract}.inbox_parked (source, endpoint, object, key, place, nth) where not dead;
create index inbox_parked_due on {extract}.inbox_parked (source, endpoint, due_at) where not dead and due_at is not null;
comment on table {extract}.inbox_parked is 'Messages that could not be applied yet, and those that wait behind them.';

create table {extract}.inbox_report (
    source text collate "C" primary key,
    number bigint not null default 0,                      -- raised by each transaction that may have changed something
    since  timestamptz                                     -- of the oldest of them; null: all was reported
);
comment on table {extract}.inbox_report is
    'Since when webhooks have changed what no asset event has told of yet.';

create table {extract}.inbox_seen (
    source   text collate "C" not null,
    endpoint text collate "C" not null,
    id       text collate "C" not null,                    -- as the message holds it
    seen_at  timestamptz not null default clock_timestamp(),
    primary key (source, endpoint, id)
);
create index inbox_seen_at on {extract}.inbox_seen (seen_at);
comment on table {extract}.inbox_seen is 'Ids of messages that were taken out of the inbox.';

create table {extract}.inbox_count (
    source   text collate "C" not null,
    endpoint text collate "C" not null,
    day      date not null,                                -- in UTC
    kind     text collate "C" not null,                    -- received, duplicate, forged, ...
    count    bigint not null default 0,
    last_at  timestamptz not null default clock_timestamp(),
    primary key (source, endpoint, day, kind)
);
comment on table {extract}.inbox_count is 'How many webhooks came, and of which kind, per day.';

create table {extract}.brought (
    source   text collate "C" not null,
    object   text collate "C" not null,
    key      text collate "C" not null,
    revision bigint not null,                              -- of the stored copy, after the change
    version  timestamptz,                                  -- the record's
    kind     text collate "C" not null,                    -- created, updated, deleted, ...
    by       text collate "C" not null check (by in ('webhook', 'poll', 'sweep', 'refetch')),
    at       timestamptz not null default clock_timestamp(),
    due_at   timestamptz,                                  -- by when a webhook should have told of it; null: one did
    told_at  timestamptz,                                  -- when one came; null: none has
    primary key (source, object, key, revision)
);
create index brought_at on {extract}.brought (source, object, at);
create index brought_untold on {extract}.brought (source, object, key) where told_at is null;
comment on table {extract}.brought is 'What brought each stored change of the objects that have webhooks.';

alter table {extract}.refetch add column told_at timestamptz; -- when a webhook first asked for it

create view {extract}.webhook_audit as
select source, object, (at at time zone 'UTC')::date as day,
       count(*) filter (where by = 'webhook') as webhook,
       count(*) filter (where by = 'poll') as poll,
       count(*) filter (where by = 'sweep') as sweep,
       count(*) filter (where by = 'refetch') as refetch,
       count(*) filter (where by <> 'webhook' and told_at is not null) as late,
       count(*) filter (where told_at is null and due_at < clock_timestamp()) as missed,
       count(*) filter (where told_at is null and due_at >= clock_timestamp()) as expected
from {extract}.brought group by 1, 2, 3;
comment on view {extract}.webhook_audit is
    'Per day: what brought changes first; of what else than a webhook brought, which webhooks came late, or never.';
