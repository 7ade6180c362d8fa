-- name: columns
select attname from pg_attribute
where attrelid = to_regclass(%(table)s) and attnum > 0 and not attisdropped;

-- name: lock
-- In the order of what they are matched by, so that two transactions cannot wait for each other. The row type of the
-- user's table says what the values are read as.
select wanted."the place"::int from {table} as target
join (
    select {wanted}, given.place as "the place"
    from unnest(%(wheres)b::text[]) with ordinality as given (sought, place),
         jsonb_populate_record(null::{table}, given.sought::jsonb) as asked
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
         jsonb_populate_record(null::{table}, given.sought::jsonb) as asked,
         jsonb_populate_record(null::{table}, given.news::jsonb) as told
    offset 0
) as wanted
where {matches};

-- name: remove
delete from {table} as target
using (
    select {wanted}
    from unnest(%(wheres)b::text[], %(values)b::text[]) as given (sought, news),
         jsonb_populate_record(null::{table}, given.sought::jsonb) as asked
    offset 0
) as wanted
where {matches};

-- name: insert
-- Whoever made the row meanwhile has done so after it was looked for: then the transaction is done again.
insert into {table} ({names})
select {values}
from unnest(%(wheres)b::text[], %(values)b::text[]) as given (sought, news),
     jsonb_populate_record(null::{table}, given.sought::jsonb) as asked,
     jsonb_populate_record(null::{table}, given.news::jsonb) as told
on conflict do nothing;
