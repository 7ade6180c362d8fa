-- name: patient
-- Who reads or backs up a table keeps it from being renamed; whoever comes behind us waits as long as we do.
select set_config('lock_timeout', '30s', true);

-- name: held
-- All fences of an object, locked; who holds one and is alive.
select walk, part, label, heartbeat, clock_timestamp() - heartbeat from (
    select * from {extract}.fence where source = %(source)s and object = %(object)s order by walk, part for update
) as fences
where runner is not null and runner <> %(runner)s and heartbeat >= clock_timestamp() - %(silent_after)s::interval;

-- name: unread
-- What consumers have not handled yet of an object's events; dead letters wait for a person, and keep no order.
select consumer.name,
       (select count(*) from {extract}.outbox as event
        where event.source = %(source)s and event.object = %(object)s
          and (event.place is null or event.place > consumer.place)),
       (select count(*) from {extract}.parked
        where parked.consumer = consumer.name and parked.source = %(source)s and parked.object = %(object)s
          and not parked.dead and parked.place <= consumer.place)
from {extract}.consumer order by consumer.name;

-- name: taken
-- Whether the books tell anything of an object.
select exists (select from {extract}.ledger where source = %(source)s and object = %(object)s)
    or exists (select from {extract}.quarantine where source = %(source)s and object = %(object)s)
    or exists (select from {extract}.refetch where source = %(source)s and object = %(object)s)
    or exists (select from {extract}.rule_state where source = %(source)s and object = %(object)s)
    or exists (select from {extract}.sweep where source = %(source)s and object = %(object)s)
    or exists (select from {extract}.brought where source = %(source)s and object = %(object)s);

-- name: ledger
-- Not shown any more: no cursor of the new name was ever written, and a missing one would mean that it was deleted. What
-- was copied is the same, though its table is called otherwise.
update {extract}.ledger
set source = %(to_source)s, object = %(to_object)s, shown = shown and %(same_name)s,
    position = case when position ->> 'made' = %(made)s
                    then jsonb_set(position, '{{made}}', to_jsonb(%(to_made)s::text)) else position end
where source = %(source)s and object = %(object)s;

-- name: quarantine
update {extract}.quarantine set source = %(to_source)s, object = %(to_object)s
where source = %(source)s and object = %(object)s;

-- name: refetch
update {extract}.refetch set source = %(to_source)s, object = %(to_object)s
where source = %(source)s and object = %(object)s;

-- name: rule_state
update {extract}.rule_state set source = %(to_source)s, object = %(to_object)s
where source = %(source)s and object = %(object)s;

-- name: sweep
update {extract}.sweep set source = %(to_source)s, object = %(to_object)s
where source = %(source)s and object = %(object)s;

-- name: inbox_parked
-- Some may be there under the new name already: tried after the file was changed, before the books were.
update {extract}.inbox_parked set source = %(to_source)s, object = %(to_object)s
where source = %(source)s and object = %(object)s;

-- name: brought
update {extract}.brought set source = %(to_source)s, object = %(to_object)s
where source = %(source)s and object = %(object)s;

-- name: hash_map
-- What a map knows of either name is over.
with left_alone as (
    update {extract}.hash_map set epoch = epoch + 1 where source = %(source)s and object = %(object)s returning epoch
)
insert into {extract}.hash_map as known (source, object, epoch)
select %(to_source)s, %(to_object)s, epoch from left_alone
on conflict (source, object) do update set epoch = greatest(known.epoch, excluded.epoch) + 1;

-- name: birth
-- The old name keeps its row, and the new one gets a number it never had: an object of either name that is made later
-- must not give ids that were given before.
insert into {extract}.birth as known (source, object, number, sequence)
select %(to_source)s, %(to_object)s, coalesce(max(number), 0), coalesce(max(sequence), 0) from {extract}.birth
where source = %(source)s and object = %(object)s
on conflict (source, object) do update
    set number = greatest(known.number + 1, excluded.number), sequence = excluded.sequence;

-- name: fence
-- The same of fences: a process that was stopped, and wakes up, must find that its number is no more.
with own as (
    select walk, part, number from {extract}.fence where source = %(source)s and object = %(object)s
)
insert into {extract}.fence as known (source, object, walk, part, number)
select %(to_source)s, %(to_object)s, walk, part, number + 1 from own
on conflict (source, object, walk, part) do update
    set number = greatest(known.number, excluded.number) + 1, runner = null, label = null, heartbeat = clock_timestamp();

-- name: free
update {extract}.fence set number = number + 1, runner = null, label = null, heartbeat = clock_timestamp()
where source = %(source)s and object = %(object)s;

-- name: quota
with own as (
    delete from {extract}.quota where source = %(source)s returning connection, state, revision
)
insert into {extract}.quota (source, connection, state, revision)
select %(to_source)s, connection, state, revision from own
on conflict (source, connection) do nothing;

-- name: still
-- In the order in which a run that applies webhooks locks: parked messages, then the inbox, then fences.
select from {extract}.inbox_parked
where source = %(source)s and object = coalesce(%(object)s, object)
order by place, nth for update;

-- name: waits
-- Whether the inbox tells anything of a source: it may never have been walked, or have got a webhook after its renaming.
select exists (select from {extract}.inbox where source = %(source)s)
    or exists (select from {extract}.inbox_parked where source = %(source)s)
    or exists (select from {extract}.inbox_seen where source = %(source)s)
    or exists (select from {extract}.inbox_count where source = %(source)s);

-- name: inbox
-- It waits for whoever is taking a webhook out, and what that one parks is seen by the statements after
-- it. One that came under the new name too is kept twice, since both may wait: applied twice is harmless.
update {extract}.inbox as own
set source = %(to_source)s,
    dedupe = case when not exists (
        select from {extract}.inbox as known
        where known.source = %(to_source)s and known.endpoint = own.endpoint and known.dedupe = own.dedupe
    ) then own.dedupe end
where source = %(source)s;

-- name: inbox_left
-- Messages of which nobody could tell the object, or of one that was never walked.
update {extract}.inbox_parked set source = %(to_source)s where source = %(source)s;

-- name: brought_left
-- Of objects that were never walked.
with twice as (
    select own.object, own.key, own.revision from {extract}.brought as own
    join {extract}.brought as known
      on known.source = %(to_source)s and known.object = own.object and known.key = own.key
     and known.revision = own.revision
    where own.source = %(source)s
), gone as (
    delete from {extract}.brought as own using twice
    where own.source = %(source)s and own.object = twice.object and own.key = twice.key
      and own.revision = twice.revision
)
update {extract}.brought as own set source = %(to_source)s
where source = %(source)s and not exists (
    select from twice where twice.object = own.object and twice.key = own.key and twice.revision = own.revision
);

-- name: inbox_seen
with own as (
    delete from {extract}.inbox_seen where source = %(source)s returning endpoint, id, seen_at
)
insert into {extract}.inbox_seen (source, endpoint, id, seen_at)
select %(to_source)s, endpoint, id, seen_at from own
on conflict (source, endpoint, id) do nothing;

-- name: inbox_count
with own as (
    delete from {extract}.inbox_count where source = %(source)s returning endpoint, day, kind, count, last_at
)
insert into {extract}.inbox_count as known (source, endpoint, day, kind, count, last_at)
select %(to_source)s, endpoint, day, kind, count, last_at from own
on conflict (source, endpoint, day, kind) do update
    set count = known.count + excluded.count, last_at = greatest(known.last_at, excluded.last_at);

-- name: inbox_report
with own as (
    delete from {extract}.inbox_report where source = %(source)s returning since
)
insert into {extract}.inbox_report as known (source, since) select %(to_source)s, since from own
on conflict (source) do update set number = known.number + 1, since = least(known.since, excluded.since);

-- name: forget_inbox
-- Before all else, as above.
delete from {extract}.inbox where source = %(source)s;

-- name: forget_inbox_left
with parked as (
    delete from {extract}.inbox_parked where source = %(source)s
), seen as (
    delete from {extract}.inbox_seen where source = %(source)s
), counted as (
    delete from {extract}.inbox_count where source = %(source)s
), unreported as (
    delete from {extract}.inbox_report where source = %(source)s
)
delete from {extract}.brought where source = %(source)s;

-- name: forget
-- Births and fences stay, see above; so do events, which tell of what was.
with rows as (
    delete from {extract}.ledger where source = %(source)s and object = %(object)s returning 1
), bad as (
    delete from {extract}.quarantine where source = %(source)s and object = %(object)s
), noted as (
    delete from {extract}.refetch where source = %(source)s and object = %(object)s
), edges as (
    delete from {extract}.rule_state where source = %(source)s and object = %(object)s
), sweeps as (
    delete from {extract}.sweep where source = %(source)s and object = %(object)s returning number
), seen as (
    delete from {extract}.sweep_seen using sweeps where sweep = sweeps.number
), parked as (
    delete from {extract}.inbox_parked where source = %(source)s and object = %(object)s
), brought as (
    delete from {extract}.brought where source = %(source)s and object = %(object)s
), written as (
    delete from {extract}.owner where source = %(source)s and object = %(object)s
), mapped as (
    update {extract}.hash_map set epoch = epoch + 1 where source = %(source)s and object = %(object)s
)
select count(*) from rows;
