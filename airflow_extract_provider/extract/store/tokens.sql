-- name: share
-- Held while an API request is under way: nobody renews meanwhile. A lock of the transaction, not of the session: it
-- goes through a pooler. The limits are set in here, since a session's settings do not. Whoever waits may have to wait
-- for two that have stopped, a request and the renewal behind it, until Postgres cuts them off.
select pg_advisory_xact_lock_shared(hashtextextended(%(place)s, 0))
from (select set_config('idle_in_transaction_session_timeout', %(idle)s, true),
             set_config('lock_timeout', %(patience)s, true) offset 0) as limits;

-- name: exclude
-- Held while tokens are renewed: no API request is under way meanwhile. Locks of this kind queue: a renewal does not
-- starve behind requests that come after it. What is committed under it must outlive a crash of the server, whatever
-- the database's or the role's default is: a note that is gone hides that a token was spent.
select pg_advisory_xact_lock(hashtextextended(%(place)s, 0))
from (select set_config('idle_in_transaction_session_timeout', %(idle)s, true),
             set_config('lock_timeout', %(patience)s, true),
             set_config('synchronous_commit', 'on', true) offset 0) as limits;

-- name: read
-- A statement of its own after the lock: the lock's own statement sees what there was before it waited.
select salt, seed, former, access_token, refresh_token, expires_at, renew_at, number, spending, spending_since,
       spending_until, lost_at, not_before, refusal, leaves_slot, clock_timestamp()
from {extract}.oauth_token where connection = %(connection)s;

-- name: seed
-- The number grows with a new seed too: what was asked for an earlier one is not stored any more.
insert into {extract}.oauth_token as held (connection, salt, seed, refresh_token)
values (%(connection)s, %(salt)s, %(seed)s, %(refresh)s)
on conflict (connection) do update
    set seed = excluded.seed, former = (array_prepend(held.seed, held.former))[1:16],
        refresh_token = excluded.refresh_token, access_token = null, expires_at = null, renew_at = null,
        number = held.number + 1, spending = null, spending_since = null, spending_until = null, lost_at = null,
        not_before = null, refusal = null, leaves_slot = null, seeded_at = clock_timestamp();

-- name: mark
-- Where there is a note that its writer did not clear away, the time of that one stays: then the token may have been spent.
update {extract}.oauth_token
set spending = %(spending)s,
    spending_since = coalesce(case when %(doubted)s then spending_since end, clock_timestamp()),
    spending_until = clock_timestamp() + %(life)s::interval, lost_at = null
where connection = %(connection)s and number = %(number)s;

-- name: store
-- The number, and not the lock, is what lets only one answer in: a process that was stopped comes too late with its
-- answer, or, if nobody else has got one, still in time. As for `exclude`, a crash of the server must not undo it: it
-- is also done without that lock, after a lost connection.
update {extract}.oauth_token
set access_token = %(access)s, refresh_token = coalesce(%(refresh)s, refresh_token),
    expires_at = %(asked_at)s + %(lives)s::interval, renew_at = %(asked_at)s + %(renew_after)s::interval,
    number = number + 1, spending = null, spending_since = null, spending_until = null, lost_at = null,
    not_before = null, refusal = null, leaves_slot = null, renewed_at = clock_timestamp()
from (select set_config('synchronous_commit', 'on', true) offset 0) as limits
where connection = %(connection)s and number = %(number)s;

-- name: refuse
-- Nobody is under way any more. The note stays only where the token may be spent.
update {extract}.oauth_token
set spending = case when %(doubted)s then spending end,
    spending_since = case when %(doubted)s then spending_since end,
    spending_until = case when %(doubted)s then clock_timestamp() end,
    not_before = clock_timestamp() + %(pause)s::interval, refusal = %(refusal)s, leaves_slot = %(leaves_slot)s
from (select set_config('synchronous_commit', 'on', true) offset 0) as limits
where connection = %(connection)s and number = %(number)s and spending = %(spending)s;

-- name: lose
update {extract}.oauth_token
set lost_at = clock_timestamp(), spending = case when %(doubted)s then spending end,
    spending_since = case when %(doubted)s then spending_since end,
    spending_until = case when %(doubted)s then clock_timestamp() end
from (select set_config('synchronous_commit', 'on', true) offset 0) as limits
where connection = %(connection)s and number = %(number)s and spending = %(spending)s;
