--[[
Commits sessions of one shard, each if and only if its record is still the one that was read; then sweeps what ended.

KEYS
  KEYS[1]       board of the shard      sorted set: session ids by probability
  KEYS[2]       last seen of the shard  sorted set: session ids by the time of their last commit, ms, server's clock
  then two for each session, i = 1, 2, ...:
  KEYS[2i+1]    record of the session   string: one codec byte, eight bytes of version, the rest
  KEYS[2i+2]    history of the session  list: one entry an event, oldest first

ARGV
  ARGV[1]       lifetime of all keys in milliseconds
  then for each session:
    id          session id
    expected    version that was read, eight bytes; empty: there must be no record
    record      the new record, its version inside
    score       probability for the board; empty: the session is to leave the board
    count       how many history entries follow
    entry...    history entries to append, oldest first

Returns one integer a session: 1 committed, 0 the record is another one now and nothing was changed.

A record that already has the new version counts as committed: a first attempt went through and its reply was lost, so
sending the same commit again is safe. Versions are random and never used twice, hence a session that expired and began
anew never passes for the old one.
Records and `seen` go by one clock and to the millisecond: a session is swept only if its record is gone.
Runs on Redis 6.2 and later and on Valkey; touches only the version of the old record.
]]

local SWEPT_BESIDE = 16

local board_key, seen_key = KEYS[1], KEYS[2]
local ttl_ms = tonumber(ARGV[1])
local time = redis.call('TIME')
local now_ms = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
-- As text: Lua would write a number of this size with an exponent.
local expires_ms = string.format('%.0f', now_ms + ttl_ms)
local seen_ms = string.format('%.0f', now_ms)
local sessions = (#KEYS - 2) / 2
local results = {}
local position = 2

for session = 1, sessions do
  local record_key, history_key = KEYS[2 * session + 1], KEYS[2 * session + 2]
  local id, expected, record, score = ARGV[position], ARGV[position + 1], ARGV[position + 2], ARGV[position + 3]
  local count = tonumber(ARGV[position + 4])
  position = position + 5

  local stored = redis.call('GETRANGE', record_key, 1, 8)
  if stored == expected then
    redis.call('SET', record_key, record, 'PXAT', expires_ms)
    if expected == '' then
      redis.call('DEL', history_key)
    end
    for entry = position, position + count - 1 do
      redis.call('RPUSH', history_key, ARGV[entry])
    end
    redis.call('PEXPIREAT', history_key, expires_ms)
    redis.call('ZADD', seen_key, seen_ms, id)
    if score == '' then
      redis.call('ZREM', board_key, id)
    else
      redis.call('ZADD', board_key, score, id)
    end
    results[session] = 1
  elseif stored == string.sub(record, 2, 9) then
    results[session] = 1
  else
    results[session] = 0
  end
  position = position + count
end

local before_ms = string.format('(%.0f', now_ms - ttl_ms)
local ended = redis.call('ZRANGEBYSCORE', seen_key, '-inf', before_ms, 'LIMIT', 0, sessions + SWEPT_BESIDE)
for _, id in ipairs(ended) do
  redis.call('ZREM', seen_key, id)
  redis.call('ZREM', board_key, id)
end
redis.call('PEXPIREAT', board_key, expires_ms)
redis.call('PEXPIREAT', seen_key, expires_ms)

return results
