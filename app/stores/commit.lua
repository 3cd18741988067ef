--[[
Commits sessions of one shard, each if and only if its record is still the one that was read.

KEYS  two for each session, i = 1, 2, ...:
  KEYS[2i-1]  record of the session   string: one codec byte, eight bytes of version, the rest
  KEYS[2i]    history of the session  list: one entry an event, oldest first

ARGV
  ARGV[1]     lifetime of both keys in milliseconds
  then for each session:
    expected  version that was read, eight bytes; empty: there must be no record
    record    the new record, its version inside
    count     how many history entries follow
    entry...  history entries to append, oldest first

Returns one integer a session: 1 committed, 0 the record is another one now and nothing was changed.

A record that already has the new version counts as committed: a first attempt went through and its reply was lost, so
sending the same commit again is safe. Versions are random and never used twice, hence a session that expired and began
anew never passes for the old one.
Runs on Redis 6.2 and later and on Valkey; touches only the version of the old record.
]]

local ttl_ms = ARGV[1]
local results = {}
local position = 2

for session = 1, #KEYS / 2 do
  local record_key, history_key = KEYS[2 * session - 1], KEYS[2 * session]
  local expected, record, count = ARGV[position], ARGV[position + 1], tonumber(ARGV[position + 2])
  position = position + 3

  local stored = redis.call('GETRANGE', record_key, 1, 8)
  if stored == expected then
    redis.call('SET', record_key, record, 'PX', ttl_ms)
    if expected == '' then
      redis.call('DEL', history_key)
    end
    for entry = position, position + count - 1 do
      redis.call('RPUSH', history_key, ARGV[entry])
    end
    redis.call('PEXPIRE', history_key, ttl_ms)
    results[session] = 1
  elseif stored == string.sub(record, 2, 9) then
    results[session] = 1
  else
    results[session] = 0
  end
  position = position + count
end

return results
