--[[
Erases a session's messages from a webhook's queue.

KEYS: see `webhook_add.lua`

ARGV
  ARGV[1]  beginning of the ids of the session's messages

Returns the number of erased messages. Takes O(messages), which are bounded. Runs on Redis 6.2 and later and on Valkey.
]]

local call = redis.call
local erased = 0
for _, id in ipairs(call('HKEYS', KEYS[2])) do
  if string.sub(id, 1, #ARGV[1]) == ARGV[1] then
    call('ZREM', KEYS[1], id)
    call('ZREM', KEYS[4], id)
    call('HDEL', KEYS[2], id)
    call('HDEL', KEYS[3], id)
    call('HDEL', KEYS[5], id)
    erased = erased + 1
  end
end
return erased
