-- What is done on the server, each time at once. KEYS[1] is the hash of one copy: its fields are the keys of records,
-- and two of our own, which no UTF-8 text can be: `born`, the server's life and a random word of the hash's beginning,
-- and `state`, the identity and the number of the last run.

-- name: life
-- A server that is killed may come back with an older state, in which entries stand that had been taken out since, and
-- so may a replica that is made master. What was kept in another life of the server is not read: `run_id` is new with
-- each start, `master_replid` with each promotion, also of a server that had been demoted meanwhile and ran on. A replica
-- lags behind, and is not asked at all. It is found out here since the client does not notice that it has reconnected.
local link = redis.call('INFO', 'replication')
if not string.find(link, 'role:master', 1, true) then
  return redis.error_reply('ERR the server is a replica')
end
local life = string.match(redis.call('INFO', 'server'), 'run_id:(%x+)') .. string.match(link, 'master_replid:(%x+)')
local BORN, STATE = '\255', '\254'

-- name: enter
-- ARGV: the identity, the number of the run that must have been the last one, this run's, a random word, seconds to keep
local found = redis.call('HMGET', KEYS[1], BORN, STATE)
local born = found[1]
local kept = born and string.sub(born, 1, #life) == life and found[2] == ARGV[1] .. '\0' .. ARGV[2]
if not kept then
  redis.call('UNLINK', KEYS[1])
  born = life .. ARGV[4]
end
redis.call('HSET', KEYS[1], BORN, born, STATE, ARGV[1] .. '\0' .. ARGV[3])
redis.call('EXPIRE', KEYS[1], ARGV[5])
return {born, kept and 1 or 0}

-- name: entered
-- ARGV: `born` as it was at the beginning of the run, seconds to keep, a marker, ...
if string.sub(ARGV[1], 1, #life) ~= life then
  return redis.error_reply('ERR the server has been started again, or another one has taken its place')
end
if redis.call('HGET', KEYS[1], BORN) ~= ARGV[1] then
  return false  -- flushed, evicted, expired, cleared, or begun anew by another run
end
local marker = ARGV[3]

-- The last command of a script: after one that writes, even a full server would take all the others.
local function keep()
  redis.call('EXPIRE', KEYS[1], ARGV[2])
end

-- name: marking
-- Puts the marker where it may stand (marker.py says where), and gives what stood there, and what the server says to it.
local function mark(keys)
  local kind, ours = string.sub(marker, 1, 1), tonumber(string.sub(marker, 2, 17))
  local found, marks = redis.call('HMGET', KEYS[1], unpack(keys)), {}
  for i, value in ipairs(found) do
    local there = value and string.sub(value, 1, 1)
    local theirs = value and there ~= 'h' and tonumber(string.sub(value, 2, 17))
    if not value or (there == 'h' and kind == 'c')
        or (theirs and (theirs < ours or (theirs == ours and (kind == 'c' or there == 'l')))) then
      marks[#marks + 1] = keys[i]
      marks[#marks + 1] = marker
    end
  end
  return found, #marks > 0 and redis.pcall('HSET', KEYS[1], unpack(marks))
end

-- name: look
-- ARGV: ..., keys. Gives the hash of each, or false. A full server may refuse the markers; then nothing is learned.
local hashes = {}
for i, value in ipairs(mark({unpack(ARGV, 4)})) do
  hashes[i] = value and string.sub(value, 1, 1) == 'h' and string.sub(value, 2)
end
keep()
return hashes

-- name: claim
-- ARGV: ..., keys. Where a full server refuses the markers, all is dropped: no entry may outlive a claim.
local _, set = mark({unpack(ARGV, 4)})
if type(set) == 'table' and set.err then
  redis.call('UNLINK', KEYS[1])
end
keep()
return true

-- name: learn
-- ARGV: ..., key and value of each, '' where there is nothing to know any more.
local keys, told, gone = {}, {}, {}
for i = 4, #ARGV, 2 do
  keys[#keys + 1] = ARGV[i]
end
for i, value in ipairs(redis.call('HMGET', KEYS[1], unpack(keys))) do
  local hash = ARGV[3 + 2 * i]
  if value == marker and hash == '' then
    gone[#gone + 1] = keys[i]
  elseif value == marker then
    told[#told + 1] = keys[i]
    told[#told + 1] = hash
  end
end
if #told > 0 then
  redis.pcall('HSET', KEYS[1], unpack(told))
end
if #gone > 0 then
  redis.pcall('HDEL', KEYS[1], unpack(gone))
end
keep()
return true
