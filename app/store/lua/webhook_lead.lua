--[[
Makes the caller the replica that moves decisions to the queues of webhooks, if there is no other.

KEYS
  KEYS[1]  leader  string: the replica that moves decisions now
  KEYS[2]  places  hash: by shard, the id of the last decision that was moved

ARGV
  ARGV[1]  name of the calling replica
  ARGV[2]  milliseconds for which it leads

Returns the places, or false if another replica leads. Leading only saves work: a message that two replicas add is there
once. Runs on Redis 6.2 and later and on Valkey.
]]

local leader = redis.call('GET', KEYS[1])
if leader and leader ~= ARGV[1] then
  return false
end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
return redis.call('HGETALL', KEYS[2])
