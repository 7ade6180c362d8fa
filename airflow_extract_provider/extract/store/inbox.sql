-- name: durable
-- Whatever the role, the database or the server says: who was answered 2xx has been told that it is on the disk.
select set_config('synchronous_commit', 'on', true);

-- name: put
-- In the order in which they came, in one statement. What is there already, with the same delivery id and the same
-- body, is passed over: the one that is there is not touched.
insert into {extract}.inbox (source, endpoint, dedupe, headers, body)
select source, endpoint, dedupe, headers::jsonb, body
from unnest(%(sources)b::text[], %(endpoints)b::text[], %(dedupes)b::uuid[], %(headers)b::text[], %(bodies)b::bytea[])
     with ordinality as given (source, endpoint, dedupe, headers, body, nth)
order by nth
on conflict (source, endpoint, dedupe) where dedupe is not null do nothing
returning dedupe;
