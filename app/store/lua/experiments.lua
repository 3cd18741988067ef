--[[
Reads counts of rules, summed over several shards: a shop may have many rules, and each shard has fields of each.

KEYS, for each shard
  experiments of the shard      hash: see `publish.lua`
  decisions of yesterday        hash: see `commit.lua`
  decisions of today            hash: see `commit.lua`
  parts of `experiments`        hashes: see `publish.lua`

ARGV
  ARGV[1]  number of keys of each shard

Returns, for each of a shard's keys, the fields and their sums over the shards; numbers as text.
Read only. Runs on Redis 6.2 and later and on Valkey.
]]

local kinds = tonumber(ARGV[1])
local replies = {}
for kind = 1, kinds do
  local sums = {}
  for place = kind, #KEYS, kinds do
    local fields = redis.call('HGETALL', KEYS[place])
    for field = 1, #fields, 2 do
      sums[fields[field]] = (sums[fields[field]] or 0) + tonumber(fields[field + 1])
    end
  end
  local reply = {}
  for name, sum in pairs(sums) do
    reply[#reply + 1] = name
    reply[#reply + 1] = string.format('%.17g', sum)
  end
  replies[kind] = reply
end
return replies
