-- Events: where they wait (outbox), who has read them up to where (consumer), what failed (parked), what edges remember.

create table {extract}.outbox (
    sequence bigint generated always as identity primary key,
    place    bigint,                                       -- in the order of reading; given after the commit (outbox_head)
    id       text collate "C" not null,                    -- computed: the same change never has two
    source   text collate "C" not null,
    object   text collate "C" not null,
    key      text collate "C" not null,                    -- the record's
    type     text collate "C" not null,
    time     timestamptz not null,                         -- the record's version, else Postgres's clock
    revision bigint not null,                              -- of the stored copy, after the change
    baseline boolean not null default false,
    data     json,                                         -- as it was made, every digit; null: the record is gone
    noted_at timestamptz not null default clock_timestamp()
) with (toast_tuple_target = 8160);                         -- compressing a record beside its former self costs too much
create unique index outbox_once on {extract}.outbox (id);
create unique index outbox_places on {extract}.outbox (place) where place is not null;
create index outbox_unplaced on {extract}.outbox (sequence) where place is null;
comment on table {extract}.outbox is 'Events, stored in the transaction that stored the change; read by place.';

create table {extract}.outbox_head (
    one   boolean primary key default true check (one),
    place bigint not null default 0                        -- the last that was given
);
insert into {extract}.outbox_head default values;
comment on table {extract}.outbox_head is 'One row, locked while committed events get their places.';

create table {extract}.consumer (
    name     text collate "C" primary key,
    place    bigint not null,                              -- everything up to here was handled or parked
    began_at timestamptz not null default clock_timestamp(),
    moved_at timestamptz not null default clock_timestamp()
);
comment on table {extract}.consumer is 'Who reads events, and up to where each has come.';

create table {extract}.parked (
    consumer  text collate "C" not null references {extract}.consumer (name) on delete cascade,
    place     bigint not null,
    source    text collate "C" not null,
    object    text collate "C" not null,
    key       text collate "C" not null,
    tries     integer not null default 0,                  -- 0: not tried yet, it waits behind another of its key
    due_at    timestamptz,                                 -- null: when those of its key before it are through
    reason    text not null default '',
    dead      boolean not null default false,              -- tried in vain; waits for a person
    parked_at timestamptz not null default clock_timestamp(),
    primary key (consumer, place)
);
create index parked_key on {extract}.parked (consumer, source, object, key, place) where not dead;
create index parked_due on {extract}.parked (consumer, due_at, place) where not dead and due_at is not null;
create index parked_place on {extract}.parked (place);
comment on table {extract}.parked is 'Events that a consumer could not handle, and those that wait behind them.';

create table {extract}.rule_state (
    source text collate "C" not null,
    object text collate "C" not null,
    rule   text collate "C" not null,
    key    text collate "C" not null,
    made   text collate "C" not null,                      -- a digest of the rule; another one remembers nothing
    fired  boolean not null,                               -- past the threshold, and not yet back behind the other one
    primary key (source, object, key, rule)
);
comment on table {extract}.rule_state is 'Which edges have fired and are not armed again.';

create table {extract}.birth (
    source   text collate "C" not null,
    object   text collate "C" not null,
    number   bigint not null,                              -- grows when the copy is started over; part of each event's id
    sequence bigint not null,                              -- the ledger row with which an empty table was begun
    primary key (source, object)
);
comment on table {extract}.birth is 'How often an object''s copy was started over, so that ids never come twice.';

create view {extract}.events as
select place, sequence, id, 'extract://' || source || '/' || object as source, type, key as subject, time, revision,
       baseline, data
from {extract}.outbox;
comment on view {extract}.events is 'The outbox in the words of CloudEvents 1.0; place null: given when it is next read.';
