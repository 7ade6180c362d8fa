-- name: noted
select object, count(*) from {extract}.refetch
where source = %(source)s and told_at is not null
group by object order by object;

-- name: changed
select object, kind, count(*) from {extract}.brought
where source = %(source)s and object = any(%(objects)s::text[]) and at >= %(since)s
  and by in ('webhook', 'refetch') and told_at is not null
group by object, kind order by object, kind;
