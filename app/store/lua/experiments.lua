--[[
Reads counts of rules of several shards.

KEYS, for each shard
  experiments of the shard      hash: see `publish.lua`
  decisions of yesterday        hash: see `commit.lua`
  decisions of today            hash: see `commit.lua`
  parts of `experiments`        hashes: see `publish.lua`

Returns each hash. Read only. Runs on Redis 6.2 and later and on Valkey.
]]

local replies = {}
for place = 1, #KEYS do
  replies[place] = redis.call('HGETALL', KEYS[place])
end
return replies
