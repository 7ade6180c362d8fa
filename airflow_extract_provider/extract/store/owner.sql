-- name: owners
-- Who writes a table, and which table an object writes; whether the ledger knows whose it is.
select source, object, schema, name,
       exists (select from {extract}.ledger where ledger.source = owner.source and ledger.object = owner.object)
from {extract}.owner
where (source = {source} and object = {object}) or (schema = {of} and name = {name});

-- name: make_room
-- What an object wrote before, and who was said to write this table, but never did.
delete from {extract}.owner
where (source = {source} and object = {object})
   or (schema = {of} and name = {name}
       and not exists (select from {extract}.ledger where ledger.source = owner.source and ledger.object = owner.object));

-- name: claim
insert into {extract}.owner (source, object, schema, name) values ({source}, {object}, {of}, {name})
on conflict do nothing
returning 1;

-- name: disown
delete from {extract}.owner where source = {source} and object = {object};
