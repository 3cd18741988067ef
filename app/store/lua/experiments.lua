--[[
Reads counts of rules of several shards.

KEYS, three for each shard
  KEYS[3i-2]  experiments of the shard      hash: see `publish.lua`
  KEYS[3i-1]  decisions of yesterday        hash: see `commit.lua`
  KEYS[3i]    decisions of today            hash: see `commit.lua`

Returns each hash. Read only. Runs on Redis 6.2 and later and on Valkey.
]]

local replies = {}
for place = 1, #KEYS do
  replies[place] = redis.call('HGETALL', KEYS[place])
end
return replies
