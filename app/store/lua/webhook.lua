--[[
Shared by the scripts of a webhook's queue, whose text follows this one. They have the same five keys.
]]

local function drop_oldest_dead(keys, most)
  local over = redis.call('ZCARD', keys[4]) - most
  if over <= 0 then
    return 0
  end
  for _, id in ipairs(redis.call('ZRANGE', keys[4], 0, over - 1)) do
    redis.call('ZREM', keys[4], id)
    redis.call('HDEL', keys[2], id)
    redis.call('HDEL', keys[3], id)
    redis.call('HDEL', keys[5], id)
  end
  return over
end

local function keep(keys, kept_ms)
  for place = 1, 5 do
    redis.call('PEXPIRE', keys[place], kept_ms)
  end
end

