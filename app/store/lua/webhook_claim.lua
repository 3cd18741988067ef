--[[
Takes messages whose attempt is due. Each is due again after the lease, so that another replica sends it if this one dies.

KEYS: see `webhook_add.lua`

ARGV
  ARGV[1]  most messages
  ARGV[2]  lease in milliseconds: longer than an attempt

Returns for each its id, its body and the number of this attempt, from 1.
A call that is sent again takes other messages; those of the first wait for the end of the lease.
Runs on Redis 6.2 and later and on Valkey.
]]

local call = redis.call
local time = call('TIME')
local now_ms = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
local due_again_ms = string.format('%.0f', now_ms + tonumber(ARGV[2]))
local claimed = {}
for _, id in ipairs(call('ZRANGEBYSCORE', KEYS[1], '-inf', string.format('%.0f', now_ms), 'LIMIT', 0, ARGV[1])) do
  local body = call('HGET', KEYS[2], id)
  if body then
    call('ZADD', KEYS[1], due_again_ms, id)
    claimed[#claimed + 1] = { id, body, call('HINCRBY', KEYS[3], id, 1) }
  else
    call('ZREM', KEYS[1], id)
  end
end
return claimed
