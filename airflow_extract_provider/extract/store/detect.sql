-- name: known
-- What was remembered by a rule that has been changed since says nothing.
select state.key, state.rule, state.fired
from {extract}.rule_state as state
join unnest(%(rules)b::text[], %(made)b::text[]) as now (rule, made) on now.rule = state.rule and now.made = state.made
where state.source = %(source)s and state.object = %(object)s and state.rule = any(%(rules)b::text[])
  and state.key = any(%(keys)b::text[]);

-- name: remember
insert into {extract}.rule_state (source, object, rule, key, made, fired)
select %(source)s, %(object)s, rule, key, made, fired
from unnest(%(rules)b::text[], %(keys)b::text[], %(made)b::text[], %(fired)b::bool[])
     with ordinality as given (rule, key, made, fired, place)
order by place
on conflict (source, object, key, rule) do update set made = excluded.made, fired = excluded.fired;
