--[[
Reads decisions of several shards, oldest first.

KEYS, one for each shard
  KEYS[i]      decisions of the shard  stream: fields `id`, the session id, and `decision`, JSON

ARGV
  ARGV[1]      most entries of one shard
  then for each shard:
  ARGV[i+1]    id of the entry after which to start; `0` starts at the oldest, `$` at the newest

Returns for each shard: the id of the newest entry, '0-0' if there never was one; then the entries as XRANGE has them.
Read only. Runs on Redis 6.2 and later and on Valkey.
]]

local replies = {}
for shard = 1, #KEYS do
  local after = ARGV[shard + 1]
  local entries = {}
  local newest = redis.call('XREVRANGE', KEYS[shard], '+', '-', 'COUNT', 1)[1]
  if newest and after ~= '$' and newest[1] ~= after then
    entries = redis.call('XRANGE', KEYS[shard], '(' .. after, '+', 'COUNT', ARGV[1])
  end
  replies[shard] = { newest and newest[1] or '0-0', entries }
end
return replies
