--[[
Takes tokens of a rule with a cap: at most so many within any hour, over all replicas.

KEYS
  KEYS[1]  tokens of the rule  sorted set: tokens by the time when they were taken, ms, Redis' clock

ARGV
  ARGV[1]  most tokens within an hour
  ARGV[2]  number of tokens
  ARGV[3]  name of this call, unique: a call that is sent again gets the tokens that it got

Returns how many tokens the caller has. If the clock goes back, tokens last longer, so that the cap holds.
Runs on Redis 6.2 and later and on Valkey.
]]

local HOUR_MS = 3600000

local time = redis.call('TIME')
local now_ms = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', string.format('%.0f', now_ms - HOUR_MS))
local left = tonumber(ARGV[1]) - redis.call('ZCARD', KEYS[1])
local taken = 0
for number = 1, tonumber(ARGV[2]) do
  local token = ARGV[3] .. ':' .. number
  if redis.call('ZSCORE', KEYS[1], token) then
    taken = taken + 1
  elseif left > 0 then
    redis.call('ZADD', KEYS[1], string.format('%.0f', now_ms), token)
    left = left - 1
    taken = taken + 1
  end
end
redis.call('PEXPIRE', KEYS[1], 2 * HOUR_MS)
return taken
