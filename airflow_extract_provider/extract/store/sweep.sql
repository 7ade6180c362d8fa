-- name: begin
insert into {extract}.sweep (number, source, object, cause, complete_to)
values (%(number)s, %(source)s, %(object)s, %(cause)s, %(complete_to)s);

-- name: give_up
-- Whatever it had not seen may have been seen by the one that comes: those notes must not be taken for its own. What a
-- webhook has asked for, before or since, is to be read all the same.
with given_up as (
    update {extract}.sweep set ended_at = clock_timestamp(), given_up = true
    where source = %(source)s and object = %(object)s and ended_at is null
    returning number
), dropped as (
    delete from {extract}.sweep_seen using given_up where sweep = given_up.number
), kept as (
    update {extract}.refetch set reason = 'webhook'
    where source = %(source)s and object = %(object)s and reason = 'absent' and told_at is not null
)
delete from {extract}.refetch
where source = %(source)s and object = %(object)s and reason = 'absent' and told_at is null;

-- name: open
select number, began_at, looked_at, complete_to, judged_at from {extract}.sweep
where source = %(source)s and object = %(object)s and ended_at is null;

-- name: last
-- When the last complete reading began, and who began it. A backfill has begun with its newest start.
select began_at, cause, number from (
    (select began_at, cause, number from {extract}.sweep
     where source = %(source)s and object = %(object)s and ended_at is not null and not given_up
     order by number desc limit 1)
    union all
    (select committed_at, '', null from {extract}.ledger
     where source = %(source)s and object = %(object)s and walk = 'backfill' and kind in ('start', 'reset')
     order by sequence desc limit 1)
) as readings (began_at, cause, number)
order by began_at desc limit 1;

-- name: clock
select clock_timestamp();

-- name: see
insert into {extract}.sweep_seen (sweep, own, digests)
select %(sweep)s, %(own)s, array_agg({extract}.digest(key)) from unnest(%(keys)b::text[]) as given (key)
having count(*) > 0;

-- name: strike
-- Seen after all, by another walk, which may have looked before the webhook came that has asked for it too.
with kept as (
    update {extract}.refetch set reason = 'webhook'
    where source = %(source)s and object = %(object)s and key = any(%(keys)b::text[]) and reason = 'absent'
      and told_at is not null
)
delete from {extract}.refetch
where source = %(source)s and object = %(object)s and key = any(%(keys)b::text[]) and reason = 'absent'
  and told_at is null;

-- name: looked
update {extract}.sweep set looked_at = least(looked_at, %(looked_at)s) where number = %(sweep)s;

-- name: found
-- Of the fields, the hundred that changed most often: a record may have fields without number.
update {extract}.sweep as open
set counts = (select coalesce(jsonb_object_agg(name, total), '{{}}') from (
        select name, sum(count::bigint)::bigint as total
        from (select * from jsonb_each_text(open.counts) union all select * from jsonb_each_text(%(counts)s::jsonb))
             as told (name, count) group by name) as added),
    fields = (select coalesce(jsonb_object_agg(name, total), '{{}}') from (
        select name, sum(count::bigint)::bigint as total
        from (select * from jsonb_each_text(open.fields) union all select * from jsonb_each_text(%(fields)s::jsonb))
             as told (name, count) group by name order by total desc, name limit 100) as added)
where number = %(sweep)s;

-- name: impatient
-- Where a table was never analysed, Postgres may think it small, and look through one list for each row of the other.
select set_config('enable_nestloop', 'off', true);

-- name: stored
-- What the sweep itself has seen, and whether another walk has seen something meanwhile.
select count(*), (select count(distinct digest) from (
           select unnest(digests) from {extract}.sweep_seen where sweep = %(sweep)s and own) as seen (digest)),
       exists (select from {extract}.sweep_seen where sweep = %(sweep)s and not own)
from {table} where deleted_at is null;

-- name: absent
-- With or without a version, as `dated` says; null: all of them. `own`: whether the sweep itself has seen them counts.
-- `offset 0`: else the join puts whole rows, all their data, into its temporary files.
select count(*) from (
    select {extract}.digest(key) as digest from {table}
    where deleted_at is null and applied_at < %(before)s and coalesce((version is not null) = %(dated)s::bool, true)
    offset 0) as stored
where not exists (
    select from (select unnest(digests) from {extract}.sweep_seen
                 where sweep = %(sweep)s and (own or not %(own)s)) as seen (digest)
    where seen.digest = stored.digest);

-- name: note_absent
-- One more than allowed, at most: that is enough to know, and nothing of it stays. `offset 0`: as above.
with stored as (
    select key, {extract}.digest(key) as digest from {table}
    where deleted_at is null and applied_at < %(before)s and coalesce((version is not null) = %(dated)s::bool, true)
    offset 0
), absent as (
    select key from stored
    where not exists (
        select from (select unnest(digests) from {extract}.sweep_seen where sweep = %(sweep)s) as seen (digest)
        where seen.digest = stored.digest)
    order by key limit %(most)s
)
insert into {extract}.refetch as noted (source, object, key, reason)
select %(source)s, %(object)s, key, 'absent' from absent order by key
on conflict (source, object, key) do update
    set number = noted.number + 1, reason = excluded.reason, noted_at = clock_timestamp();

-- name: judge
update {extract}.sweep set judged_at = clock_timestamp(), stored = %(stored)s, seen = %(seen)s, absent = %(absent)s
where number = %(sweep)s;

-- name: unseen
select key, number from {extract}.refetch
where source = %(source)s and object = %(object)s and reason = 'absent'
order by noted_at, key limit %(limit)s;

-- name: end
-- What it had noted and could not settle is not the next one's, which may see it: it stays to be read by key.
with ended as (
    update {extract}.sweep set ended_at = clock_timestamp() where number = %(sweep)s returning number, source, object
), dropped as (
    delete from {extract}.sweep_seen using ended where sweep = ended.number
)
update {extract}.refetch as noted set reason = 'undecided' from ended
where noted.source = ended.source and noted.object = ended.object and reason = 'absent';

-- name: report
select number, began_at, ended_at, complete_to, stored, seen, absent, counts, fields
from {extract}.sweep where number = %(sweep)s;
