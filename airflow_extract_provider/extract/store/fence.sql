-- name: acquire
-- One statement, so that of two who want a silent holder's walk only one gets it: the second finds the heartbeat moved.
insert into {extract}.fence as held (source, object, walk, part, number, runner, label)
values (%(source)s, %(object)s, %(walk)s, %(part)s, 1, %(runner)s, %(label)s)
on conflict (source, object, walk, part) do update
    set number = held.number + 1, runner = excluded.runner, label = excluded.label, heartbeat = clock_timestamp()
    where held.runner is null
       or held.runner = excluded.runner
       or held.heartbeat < clock_timestamp() - %(silent_after)s::interval
       or %(take_over)s
returning number;

-- name: holder
select label, heartbeat, clock_timestamp() - heartbeat from {extract}.fence
where source = %(source)s and object = %(object)s and walk = %(walk)s and part = %(part)s;

-- name: impatient
-- The holder's transaction may wait for a lock itself; then its fence stays locked.
select set_config('lock_timeout', '5s', true);

-- name: enter
-- The same with limits for the transaction; they are set here, since a session's settings do not survive a pooler. A
-- stopped holder must not keep row locks for ever; nor may it wait for ever for a row that somebody else has locked: it
-- would hold the fence meanwhile.
update {extract}.fence set heartbeat = clock_timestamp()
from (select set_config('idle_in_transaction_session_timeout', %(idle)s, true),
             set_config('lock_timeout', %(idle)s, true) offset 0) as limits
where source = %(source)s and object = %(object)s and walk = %(walk)s and part = %(part)s and number = %(number)s
returning clock_timestamp();

-- name: hold
-- An update, not a read: the row lock is what keeps a takeover out until this transaction has ended.
update {extract}.fence set heartbeat = clock_timestamp()
where source = %(source)s and object = %(object)s and walk = %(walk)s and part = %(part)s and number = %(number)s
returning clock_timestamp();

-- name: release
update {extract}.fence set runner = null, label = null, heartbeat = clock_timestamp()
where source = %(source)s and object = %(object)s and walk = %(walk)s and part = %(part)s and number = %(number)s;
