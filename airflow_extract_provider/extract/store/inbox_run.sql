-- name: noted
select object, count(*) from {extract}.refetch
where source = %(source)s and told_at is not null
group by object order by object;

-- name: changed
select object, kind, count(*) from {extract}.brought
where source = %(source)s and object = any(%(objects)s::text[]) and at >= %(since)s
  and by in ('webhook', 'refetch') and told_at is not null
group by object, kind order by object, kind;

-- name: opened
-- In the transaction that has changed something, and the last that it locks: what changes it has noted are not older.
insert into {extract}.inbox_report as known (source, since) values (%(source)s, transaction_timestamp())
on conflict (source) do update set number = known.number + 1, since = least(known.since, excluded.since);

-- name: unreported
select number, since, clock_timestamp() from {extract}.inbox_report where source = %(source)s and since is not null;

-- name: reported
-- Unless something has been changed meanwhile: that is reported with the rest again, by the next run.
update {extract}.inbox_report set since = %(since)s::timestamptz where source = %(source)s and number = %(number)s;

-- name: parked
-- Of which of these objects any message waits. Object by object, found by the index: there may be a crowd of them.
select told.object from unnest(%(objects)s::text[]) as told (object)
where exists (
    select from {extract}.inbox_parked as parked
    where parked.source = %(source)s and parked.endpoint = any(%(endpoints)s::text[])
      and parked.object = told.object and not parked.dead
);
