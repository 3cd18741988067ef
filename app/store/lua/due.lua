--[[
Lists a sweeper's work in one shard: sessions that have ended, and closed sessions that are not published yet.

KEYS
  KEYS[1]  closer of the shard     string: the replica that sweeps the shard now
  KEYS[2]  last seen of the shard  sorted set: session ids by time of last commit, ms, Redis' clock
  KEYS[3]  closed of the shard     stream: see `closing.lua`

ARGV
  ARGV[1]  name of the calling replica
  ARGV[2]  milliseconds for which the caller owns the shard if there is work
  ARGV[3]  idle time that ends a session, in milliseconds
  ARGV[4]  most session ids
  ARGV[5]  most closed sessions

Returns the ids and the entries of `closed`, each oldest first. Returns two empty lists if there is no work or another
replica owns the shard. Ownership only saves work: a second sweep would change nothing.
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
