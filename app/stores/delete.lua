--[[
Erases everything of one session.

KEYS
  KEYS[1]  board of the shard      sorted set: session ids by probability
  KEYS[2]  last seen of the shard  sorted set: session ids by time
  KEYS[3]  record of the session   string
  KEYS[4]  history of the session  list

ARGV
  ARGV[1]  session id

Returns 1 if there was a record, 0 if not.

A commit that read the session before and comes after finds another version, reads again, and begins a new session.
Runs on Redis 6.2 and later and on Valkey.
]]

local existed = redis.call('DEL', KEYS[3])
redis.call('DEL', KEYS[4])
redis.call('ZREM', KEYS[1], ARGV[1])
redis.call('ZREM', KEYS[2], ARGV[1])
return existed
