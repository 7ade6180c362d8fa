-- What could not be stored (quarantine), which instants are covered (coverage, gaps), and a ledger that can be folded.
--
-- Record tables need no new column. A deleted record is a row with `deleted_at`: the copy is `where deleted_at is null`.
-- Its `data` stays what was last known of the record, since a tombstone has none of its fields; a key that was never
-- stored before has the tombstone itself as `data`, or JSON null when the API only answered 404 or 410. Its `raw_hash` is
-- that of the tombstone, so that the same tombstone again is seen to be nothing new.

create table {extract}.quarantine (
    id       bigint generated always as identity primary key,
    source   text collate "C" not null,
    object   text collate "C" not null,
    page     integer,                                      -- of the walk, counted from 1; where it was seen last
    number   integer not null,                             -- on the page, counted from 1
    key      text collate "C",                             -- null: that is what cannot be read
    raw      bytea not null,                               -- the record's own bytes: perhaps no JSON, no UTF-8
    digest   bytea not null,                               -- XXH3-128 of raw
    why      text not null,                                -- without the record's values
    sent_at  timestamptz not null,                         -- Postgres's clock, before the page that showed it last was asked for
    cause    text not null default '',                     -- the task instance that saw it last
    seen     bigint not null default 1,                    -- how often it was seen
    noted_at timestamptz not null default clock_timestamp(),
    seen_at  timestamptz not null default clock_timestamp()
);
create unique index quarantine_once on {extract}.quarantine (source, object, digest);
comment on table {extract}.quarantine is 'Records that could not be stored as they are, until they are replayed.';

-- Keys are read again in the order in which they were noted.
create index refetch_due on {extract}.refetch (source, object, noted_at, key);

-- Folding: consecutive old pages become one row, which stands where the last of them stood.
alter table {extract}.ledger
    alter column records type bigint,
    add column pages bigint,                               -- of a folded row: how many pages it stands for
    add column since timestamptz,                          -- of a folded row: when the first of them was committed
    add column covered tstzmultirange,                     -- of a folded row: what their completed laps have covered
    drop constraint ledger_kind_check,
    add constraint ledger_kind_check check (kind in ('start', 'reset', 'edit', 'page', 'fold')),
    add constraint ledger_folded check ((kind = 'fold') = (pages is not null));
-- Where a walk stands is asked in each run, its sums at each end. In rising order of the negative, since in falling order
-- of the sequence Postgres may choose to look through the primary key, past the rows of all other walks.
drop index {extract}.ledger_walk;
create index ledger_newest on {extract}.ledger (source, object, walk, part, (-sequence));
create index ledger_cause on {extract}.ledger (source, object, walk, cause) where cause <> '';
create index ledger_begun on {extract}.ledger (source, object, walk, sequence) where kind in ('start', 'reset');
create index ledger_complete on {extract}.ledger (source, object, walk, sequence)
    where (kind = 'page' and position ->> 'complete' = 'true') or covered is not null;

-- A completed lap has read all that changed from `since` (null: ever) to `closed`. The backfills of version 0001 told
-- only `began_at`. Partitions and windows are no laps of the object.
create function {extract}.lap(kind text, walk text, stood jsonb, covered tstzmultirange) returns tstzmultirange
language sql stable parallel safe as $$
    select case
        when kind = 'fold' then covered
        when kind = 'page' and stood ->> 'complete' = 'true' and told.closed >= coalesce(told.since, '-infinity')
        then tstzmultirange(tstzrange(told.since, told.closed, '[]'))
    end
    from (select (stood ->> 'since')::timestamptz as since,
                 coalesce((stood ->> 'closed')::timestamptz,
                          case when walk = 'backfill' then (stood ->> 'began_at')::timestamptz end) as closed) as told
$$;

create view {extract}.covered as
with begun as (
    select source, object, walk, max(sequence) as sequence from {extract}.ledger
    where kind in ('start', 'reset') and part = '' group by source, object, walk
), laps as (
    select source, object, {extract}.lap(kind, walk, position, covered) as lap
    from {extract}.ledger as done left join begun using (source, object, walk)
    where part = ''
      and ((kind = 'page' and position ->> 'complete' = 'true') or covered is not null)
      and done.sequence > coalesce(begun.sequence, 0)
)
select source, object, range_agg(span) as spans from laps, unnest(lap) as span group by source, object;
comment on view {extract}.covered is 'Which instants an object''s completed walks cover since they last started over.';

create view {extract}.coverage as
select source, object, lower(span) as from_instant, upper(span) as to_instant
from {extract}.covered, unnest(spans) as span;
comment on view {extract}.coverage is 'The intervals that are covered; from_instant null: from the beginning.';

create view {extract}.gaps as
select source, object, lower(span) as from_instant, upper(span) as to_instant
from {extract}.covered, unnest(tstzmultirange(range_merge(spans)) - spans) as span;
comment on view {extract}.gaps is 'The holes between the intervals of coverage.';
