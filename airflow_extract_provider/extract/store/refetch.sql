-- name: note
-- That a webhook has told of it is kept, whoever notes it later.
insert into {extract}.refetch as noted (source, object, key, reason, told_at)
select %(source)s, %(object)s, key, %(reason)s, case when %(told)s then clock_timestamp() end
from unnest(%(keys)b::text[]) with ordinality as given (key, place)
order by place
on conflict (source, object, key) do update
    set number = noted.number + 1, reason = excluded.reason, noted_at = clock_timestamp(),
        told_at = coalesce(noted.told_at, excluded.told_at);

-- name: due
select key, number from {extract}.refetch
where source = %(source)s and object = %(object)s
order by noted_at, key limit %(limit)s;

-- name: forget
delete from {extract}.refetch where source = %(source)s and object = %(object)s;

-- name: lock
-- Before a transaction both notes and settles: in one order, so that two of them cannot wait for each other.
select key from {extract}.refetch
where source = %(source)s and object = %(object)s and key = any(%(keys)b::text[])
order by key
for update;

-- name: settle
-- Whoever noted the key again meanwhile has raised its number: that need is a new one, and stays.
with claimed as (
    select noted.key from {extract}.refetch as noted
    join unnest(%(keys)b::text[], %(numbers)b::bigint[]) as given (key, number)
      on given.key = noted.key and given.number = noted.number
    where noted.source = %(source)s and noted.object = %(object)s and noted.key = any(%(keys)b::text[])
    order by noted.key
    for update of noted
)
delete from {extract}.refetch as noted using claimed
where noted.source = %(source)s and noted.object = %(object)s and noted.key = any(%(keys)b::text[])
  and noted.key = claimed.key
returning noted.key, noted.reason, noted.told_at is not null;
