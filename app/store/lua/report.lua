--[[
Stores one replica's report, and removes replicas whose report has expired.

KEYS
  KEYS[1]  replicas  sorted set: replica names by time of last report, ms, Redis' clock
  KEYS[2]  reports   hash: last report of each replica

ARGV
  ARGV[1]  lifetime of a report, ms
  ARGV[2]  name of the replica
  ARGV[3]  its report; empty: the replica stops, so remove it

Returns 1. Idempotent. Runs on Redis 6.2 and later and on Valkey.
]]

local MOST_FORGOTTEN = 64

local ttl_ms = tonumber(ARGV[1])
local time = redis.call('TIME')
local now_ms = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
if ARGV[3] == '' then
  redis.call('ZREM', KEYS[1], ARGV[2])
  redis.call('HDEL', KEYS[2], ARGV[2])
else
  redis.call('ZADD', KEYS[1], string.format('%.0f', now_ms), ARGV[2])
  redis.call('HSET', KEYS[2], ARGV[2], ARGV[3])
end
local before_ms = string.format('(%.0f', now_ms - ttl_ms)
for _, name in ipairs(redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', before_ms, 'LIMIT', 0, MOST_FORGOTTEN)) do
  redis.call('ZREM', KEYS[1], name)
  redis.call('HDEL', KEYS[2], name)
end
redis.call('PEXPIRE', KEYS[1], ttl_ms)
redis.call('PEXPIRE', KEYS[2], ttl_ms)
return 1
