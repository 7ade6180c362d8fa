-- What all tasks share: how often an API may be asked (quota), tokens of logins (oauth_token).

create table {extract}.quota (
    source     text collate "C" not null,
    connection text collate "C" not null,
    state      jsonb not null,                             -- the turns taken, as api/usage.py counts them
    revision   bigint not null,                            -- grows with each change; only who knows the newest may write
    changed_at timestamptz not null default clock_timestamp(),
    primary key (source, connection)
) with (fillfactor = 50);                                  -- changed many times a second, within its page
comment on table {extract}.quota is 'How much of an API''s quota is used, by all tasks; a row deleted starts it anew.';

create table {extract}.oauth_token (
    connection     text collate "C" primary key,
    salt           bytea not null,
    seed           bytea not null,                         -- digest of the refresh token in the connection
    former         bytea[] not null default array[]::bytea[], -- the same of earlier ones, newest first
    access_token   bytea,                                  -- encrypted; null: none yet
    refresh_token  bytea not null,                         -- encrypted; the next to be spent
    expires_at     timestamptz,                            -- of the access token; null: not told
    renew_at       timestamptz,                            -- somewhat before that
    number         bigint not null default 0,              -- of renewals and new seeds
    spending       text,                                   -- who is spending the refresh token; null: nobody
    spending_since timestamptz,
    spending_until timestamptz,                            -- from then on that one has certainly ended
    lost_at        timestamptz,                            -- when it was last refused; null: it is not
    not_before     timestamptz,                            -- the token endpoint is left alone until then; null: it is not
    refusal        text,                                   -- why it is, in our words
    leaves_slot    boolean,                                -- whether a task leaves its slot meanwhile
    seeded_at      timestamptz not null default clock_timestamp(),
    renewed_at     timestamptz
);
comment on table {extract}.oauth_token is 'Tokens of logins by OAuth 2.0, encrypted, shared by all tasks.';
