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
    or exists (select from {extract}.sweep where source = %(source)s and object = %(object)s);

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
), written as (
    delete from {extract}.owner where source = %(source)s and object = %(object)s
), mapped as (
    update {extract}.hash_map set epoch = epoch + 1 where source = %(source)s and object = %(object)s
)
select count(*) from rows;
