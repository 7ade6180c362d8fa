-- name: covers
select exists (
    select from {extract}.covered
    where source = %(source)s and object = %(object)s
      and spans @> tstzrange(%(start)s::timestamptz, %(until)s::timestamptz, '[)')
);

-- name: coverage
select source, object, from_instant, to_instant, false as gap from {extract}.coverage
where source = coalesce(%(source)s, source) and object = coalesce(%(object)s, object)
union all
select source, object, from_instant, to_instant, true from {extract}.gaps
where source = coalesce(%(source)s, source) and object = coalesce(%(object)s, object)
order by source, object, to_instant;
