--[[
Reads a webhook's queue: its sizes, and its last dead messages.

KEYS: see `webhook_add.lua`

ARGV
  ARGV[1]  most messages

Returns how many wait, the due time of the first, ms, or an empty string, how many are dead; then for each of the last
dead ones, latest first, its id, its body, the number of attempts, the cause and the time of its death, ms.
Read only. Runs on Redis 6.2 and later and on Valkey.
]]

local call = redis.call
local first = call('ZRANGE', KEYS[1], 0, 0, 'WITHSCORES')
local found = { call('ZCARD', KEYS[1]), first[2] or '', call('ZCARD', KEYS[4]) }
local most = tonumber(ARGV[1])
if most > 0 then
  local dead = call('ZREVRANGE', KEYS[4], 0, most - 1, 'WITHSCORES')
  for place = 1, #dead, 2 do
    local id = dead[place]
    found[#found + 1] = {
      id, call('HGET', KEYS[2], id) or '', call('HGET', KEYS[3], id) or '0', call('HGET', KEYS[5], id) or '',
      dead[place + 1],
    }
  end
end
return found
