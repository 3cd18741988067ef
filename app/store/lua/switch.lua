--[[
Switches a rule on or off.

KEYS
  KEYS[1]  switches  hash: by rule that is off: when it was switched off, ms, Redis' clock

ARGV
  ARGV[1]  name of the rule
  ARGV[2]  'on' or 'off'

Returns 1. Idempotent: a rule that is off keeps its time. Runs on Redis 6.2 and later and on Valkey.
]]

if ARGV[2] == 'on' then
  redis.call('HDEL', KEYS[1], ARGV[1])
  return 1
end
local time = redis.call('TIME')
local now_ms = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
redis.call('HSETNX', KEYS[1], ARGV[1], string.format('%.0f', now_ms))
return 1
