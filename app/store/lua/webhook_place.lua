--[[
Records up to where decisions have been moved to the queues of webhooks.

KEYS
  KEYS[1]  places  hash: by shard, the id of the last decision that was moved

ARGV
  ARGV[1]  lifetime of the hash, ms
  then for each shard its number and the id

Returns 1. Idempotent. Runs on Redis 6.2 and later and on Valkey.
]]

for place = 2, #ARGV, 2 do
  redis.call('HSET', KEYS[1], ARGV[place], ARGV[place + 1])
end
redis.call('PEXPIRE', KEYS[1], ARGV[1])
return 1
