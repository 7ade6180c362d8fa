-- name: read
-- One row in any case: the clock is needed even where nothing is stored yet.
select quota.state::text, quota.revision, extract(epoch from clock_timestamp())::float8
from (values (%(source)s::text, %(connection)s::text)) as asked (source, connection)
left join {extract}.quota using (source, connection);

-- name: add
-- Nothing is lost with a commit that a crash of the server undoes but the count of a few requests.
insert into {extract}.quota (source, connection, state, revision)
select %(source)s, %(connection)s, %(state)s, %(revision)s + 1
from (select set_config('synchronous_commit', 'off', true), set_config('lock_timeout', '5s', true) offset 0) as limits
on conflict do nothing
returning extract(epoch from clock_timestamp())::float8;

-- name: change
-- Compare and set in one statement that is a transaction: no lock is held while a process thinks, waits or is stopped.
-- The settings are made here, since a session's do not survive a pooler.
update {extract}.quota set state = %(state)s, revision = revision + 1, changed_at = clock_timestamp()
from (select set_config('synchronous_commit', 'off', true), set_config('lock_timeout', '5s', true) offset 0) as limits
where source = %(source)s and connection = %(connection)s and revision = %(revision)s
returning extract(epoch from clock_timestamp())::float8;

-- name: begin
-- The next three are sent together, and so are a change and the commit: two round trips, one of them with the row locked.
begin isolation level read committed;

-- name: bounds
-- Before the lock. Whoever is stopped while holding it loses it, and so must try again.
select set_config('lock_timeout', '5s', true), set_config('idle_in_transaction_session_timeout', '1s', true);

-- name: lock
-- The clock is looked at outside: inside it would be that of before the wait.
select locked.state::text, locked.revision, extract(epoch from clock_timestamp())::float8
from (
    select quota.state, quota.revision from {extract}.quota
    where source = %(source)s and connection = %(connection)s
    for update
) as locked;

-- name: commit
commit;

-- name: rollback
rollback;
