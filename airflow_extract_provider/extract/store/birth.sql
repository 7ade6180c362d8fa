-- name: born
-- A folded ledger row may stand for pages before and behind the birth: what it covers is behind, since folding never
-- goes across a start.
select coalesce((select number from {extract}.birth where source = %(source)s and object = %(object)s), 0),
       exists (
           select from {extract}.ledger
           where source = %(source)s and object = %(object)s and walk = 'backfill'
             and ((kind = 'page' and position ->> 'complete' = 'true') or covered is not null)
             and sequence > coalesce(
                 (select sequence from {extract}.birth where source = %(source)s and object = %(object)s), 0)
       );

-- name: reborn
-- A copy that was filled before births were counted was born with the first row of the ledger.
insert into {extract}.birth as known (source, object, number, sequence)
values (%(source)s, %(object)s, 1, case when %(empty)s then %(sequence)s::bigint else 0 end)
on conflict (source, object) do update
    set number = known.number + 1, sequence = case when %(empty)s then excluded.sequence else known.sequence end;
