-- name: share
-- Held while an API request is under way: nobody renews meanwhile. A lock of the transaction, not of the session: it
-- goes through a pooler. The limits are set in here, since a session's settings do not. Whoever waits may have to wait
-- for two that have stopped, a request and the renewal behind it, until Postgres cuts them off.
select pg_advisory_xact_lock_shared(hashtextextended(%(place)s, 0))
from (select set_config('idle_in_transaction_session_timeout', %(idle)s, true),
             set_config('lock_timeout', %(patience)s, true) offset 0) as limits;

-- name: exclude
-- Held while tokens are renewed: no API request is under way meanwhile. Locks of this kind queue: a renewal does not
-- starve behind requests that come after it.
select pg_advisory_xact_lock(hashtextextended(%(place)s, 0))
from (select set_config('idle_in_transaction_session_timeout', %(idle)s, true),
             set_config('lock_timeout', %(patience)s, true) offset 0) as limits;

-- name: read
-- A statement of its own after the lock: the lock's own statement sees what there was before it waited.
select salt, seed, former, access_token, refresh_token, renew_at <= clock_timestamp(), number, spending,
       spending_since, lost_at, clock_timestamp()
from {extract}.oauth_token where connection = %(connection)s;

-- name: seed
-- The number grows with a new seed too: what was asked for an earlier one is not stored any more.
insert into {extract}.oauth_token as held (connection, salt, seed, refresh_token)
values (%(connection)s, %(salt)s, %(seed)s, %(refresh)s)
on conflict (connection) do update
    set seed = excluded.seed, former = (array_prepend(held.seed, held.former))[1:16],
        refresh_token = excluded.refresh_token, access_token = null, expires_at = null, renew_at = null,
        number = held.number + 1, spending = null, spending_since = null, lost_at = null,
        seeded_at = clock_timestamp();

-- name: mark
update {extract}.oauth_token set spending = %(spending)s, spending_since = clock_timestamp()
where connection = %(connection)s and number = %(number)s;

-- name: store
-- The number, and not the lock, is what lets only one answer in: a process that was stopped comes too late with its
-- answer, or, if nobody else has got one, still in time.
update {extract}.oauth_token
set access_token = %(access)s, refresh_token = coalesce(%(refresh)s, refresh_token),
    expires_at = %(asked_at)s + %(lives)s::interval, renew_at = %(asked_at)s + %(renew_after)s::interval,
    number = number + 1, spending = null, spending_since = null, lost_at = null, renewed_at = clock_timestamp()
where connection = %(connection)s and number = %(number)s;

-- name: unmark
update {extract}.oauth_token set spending = null, spending_since = null
where connection = %(connection)s and number = %(number)s and spending = %(spending)s;

-- name: lose
update {extract}.oauth_token set lost_at = clock_timestamp(), spending = case when %(spent)s then spending end,
    spending_since = case when %(spent)s then spending_since end
where connection = %(connection)s and number = %(number)s;
