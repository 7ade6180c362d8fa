-- name: life
-- What a hash map must be of to be believed: this server's present life (a commit that was not yet on disk, or not yet
-- at a standby, may be gone in the next one), and this table, not emptied and not made anew since.
select concat_ws('.', system_identifier, current_database()),
       concat_ws('.', timeline_id, extract(epoch from pg_postmaster_start_time()),
                 pg_relation_filenode(%(table)s::regclass))
from pg_control_system(), pg_control_checkpoint();

-- name: enter
insert into {extract}.hash_map (source, object) values (%(source)s, %(object)s)
on conflict (source, object) do nothing;

-- name: epoch
select epoch from {extract}.hash_map where source = %(source)s and object = %(object)s;

-- name: durable
select set_config('synchronous_commit', 'on', true) where current_setting('synchronous_commit') = 'off';

-- name: leave
-- Something is written without the map: nothing that it holds is believed any more.
update {extract}.hash_map set epoch = epoch + 1 where source = %(source)s and object = %(object)s;
