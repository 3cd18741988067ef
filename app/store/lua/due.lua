--[[
Asks one shard what there is to do for a closer: which sessions have ended, and which closed ones nobody has taken on.

KEYS
  KEYS[1]  closer of the shard     string: the replica that does it for now
  KEYS[2]  last seen of the shard  sorted set: session ids by the time of their last commit, ms, server's clock
  KEYS[3]  closed of the shard     stream: see `closing.lua`

ARGV
  ARGV[1]  name of the replica that asks
  ARGV[2]  for how many milliseconds the shard is its own when there is something to do
  ARGV[3]  idle time that ends a session, in milliseconds
  ARGV[4]  session ids at most
  ARGV[5]  closed sessions at most

Returns the ids and the entries of `closed`, each oldest first; two empty lists when there is nothing to do, or another
replica does it. That only one does it saves work: doing it twice would change nothing.
Runs on Redis 6.2 and later and on Valkey.
]]

local time = redis.call('TIME')
local now_ms = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
local before_ms = string.format('(%.0f', now_ms - tonumber(ARGV[3]))
local ids = redis.call('ZRANGEBYSCORE', KEYS[2], '-inf', before_ms, 'LIMIT', 0, ARGV[4])
local entries = redis.call('XRANGE', KEYS[3], '-', '+', 'COUNT', ARGV[5])
if #ids == 0 and #entries == 0 then
  return { {}, {} }
end
local closer = redis.call('GET', KEYS[1])
if closer and closer ~= ARGV[1] then
  return { {}, {} }
end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
return { ids, entries }
