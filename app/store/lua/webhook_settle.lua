--[[
Records what became of an attempt.

KEYS: see `webhook_add.lua`

ARGV
  ARGV[1]  id of the message
  ARGV[2]  number of the attempt
  ARGV[3]  'sent', 'again' or 'dead'
  ARGV[4]  again: milliseconds until the next attempt
  ARGV[5]  dead: the cause
  ARGV[6]  most dead messages; the oldest go first
  ARGV[7]  lifetime of the keys, ms

Returns how many dead messages were dropped. A message that was sent is removed, whichever replica holds its lease. Otherwise, a
later attempt decides: nothing changes. Idempotent. Runs on Redis 6.2 and later and on Valkey.
]]

local call = redis.call
local id = ARGV[1]
if ARGV[3] == 'sent' then
  call('ZREM', KEYS[1], id)
  call('ZREM', KEYS[4], id)
  call('HDEL', KEYS[2], id)
  call('HDEL', KEYS[3], id)
  call('HDEL', KEYS[5], id)
  return 0
end
if call('HGET', KEYS[3], id) ~= ARGV[2] or not call('ZSCORE', KEYS[1], id) then
  return 0
end
local time = call('TIME')
local now_ms = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
keep(KEYS, ARGV[7])
if ARGV[3] == 'again' then
  call('ZADD', KEYS[1], string.format('%.0f', now_ms + tonumber(ARGV[4])), id)
  return 0
end
call('ZREM', KEYS[1], id)
call('ZADD', KEYS[4], string.format('%.0f', now_ms), id)
call('HSET', KEYS[5], id, ARGV[5])
return drop_oldest_dead(KEYS, tonumber(ARGV[6]))
