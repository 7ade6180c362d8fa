-- name: columns
select attname, format_type(atttypid, atttypmod) from pg_attribute
where attrelid = to_regclass(%(table)s) and attnum > 0 and not attisdropped;

-- name: ranks
-- Which of the wheres are equal, by the types' own order, in which the rows are locked.
select given.place::int, dense_rank() over (order by {wanted})::int
from unnest(%(wheres)b::text[]) with ordinality as given (sought, place),
     jsonb_to_record(given.sought::jsonb) as asked ({sought});

-- name: lock
-- In that order, so that two transactions cannot wait for each other.
select wanted."the place"::int, 1 from {table} as target
join (
    select {wanted}, given.place as "the place"
    from unnest(%(wheres)b::text[]) with ordinality as given (sought, place),
         jsonb_to_record(given.sought::jsonb) as asked ({sought})
    offset 0
) as wanted on {matches}
order by {ordered}
for update of target;

-- name: write
update {table} as target
set {sets}
from (
    select {wanted}, {news}
    from unnest(%(wheres)b::text[], %(values)b::text[]) as given (sought, news),
         jsonb_to_record(given.sought::jsonb) as asked ({sought}),
         jsonb_to_record(given.news::jsonb) as told ({given})
    offset 0
) as wanted
where {matches};

-- name: remove
delete from {table} as target
using (
    select {wanted}
    from unnest(%(wheres)b::text[], %(values)b::text[]) as given (sought, news),
         jsonb_to_record(given.sought::jsonb) as asked ({sought})
    offset 0
) as wanted
where {matches};

-- name: insert
-- Whoever made the row meanwhile has done so after it was looked for: then the transaction is done again.
insert into {table} ({names})
select {values}
from unnest(%(wheres)b::text[], %(values)b::text[]) as given (sought, news),
     jsonb_to_record(given.sought::jsonb) as asked ({sought}),
     jsonb_to_record(given.news::jsonb) as told ({given})
on conflict do nothing;
