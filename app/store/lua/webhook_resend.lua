--[[
Moves dead messages back to the queue, with all attempts ahead.

KEYS: see `webhook_add.lua`

ARGV
  ARGV[1]  most messages
  ARGV[2]  lifetime of the keys, ms
  then ids; none: the oldest dead ones

Returns the number of messages that were moved. Runs on Redis 6.2 and later and on Valkey.
]]

local call = redis.call
local time = call('TIME')
local now_ms = string.format('%.0f', tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000))
local ids = {}
if #ARGV > 2 then
  for place = 3, #ARGV do
    ids[#ids + 1] = ARGV[place]
  end
else
  ids = call('ZRANGE', KEYS[4], 0, tonumber(ARGV[1]) - 1)
end
local moved = 0
for _, id in ipairs(ids) do
  if call('ZREM', KEYS[4], id) == 1 then
    call('HDEL', KEYS[3], id)
    call('HDEL', KEYS[5], id)
    call('ZADD', KEYS[1], now_ms, id)
    moved = moved + 1
  end
end
keep(KEYS, ARGV[2])
return moved
