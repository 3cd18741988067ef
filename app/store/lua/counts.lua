--[[
Reads a model's counts in one time bucket.

KEYS
  KEYS[1]  counts of its answers  hash: field to integer
  KEYS[2]  counts of its inputs   hash: field to integer

Returns two lists, each of alternating fields and integers.
Runs on Redis 6.2 and later and on Valkey.
]]

return { redis.call('HGETALL', KEYS[1]), redis.call('HGETALL', KEYS[2]) }
