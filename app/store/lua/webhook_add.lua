--[[
Adds messages to a webhook's queue; one that is there already, waiting or dead, is not added again.

KEYS
  KEYS[1]  due     sorted set: message ids by time of the next attempt, ms, Redis' clock
  KEYS[2]  bodies  hash: body of each message, waiting or dead
  KEYS[3]  tries   hash: number of attempts of each
  KEYS[4]  dead    sorted set: ids of messages that are not sent any more, by time, ms
  KEYS[5]  causes  hash: why each of those is dead

ARGV
  ARGV[1]  most messages that wait
  ARGV[2]  most dead messages; the oldest go first
  ARGV[3]  lifetime of the keys, ms
  then for each message its id and its body

Returns how many now wait, how many died because the queue is full, and how many dead ones were dropped.
Idempotent while a message is there. Runs on Redis 6.2 and later and on Valkey.
]]

local call = redis.call
local most, most_dead, kept_ms = tonumber(ARGV[1]), tonumber(ARGV[2]), ARGV[3]
local time = call('TIME')
local now_ms = string.format('%.0f', tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000))
local added, died, dropped = 0, 0, 0

for place = 4, #ARGV, 2 do
  local id, body = ARGV[place], ARGV[place + 1]
  if call('HSETNX', KEYS[2], id, body) == 1 then
    if call('ZCARD', KEYS[1]) < most then
      call('ZADD', KEYS[1], now_ms, id)
      added = added + 1
    else
      call('ZADD', KEYS[4], now_ms, id)
      call('HSET', KEYS[5], id, 'queue_full')
      died = died + 1
    end
  end
end
dropped = drop_oldest_dead(KEYS, most_dead)
keep(KEYS, kept_ms)
return { added, died, dropped }
