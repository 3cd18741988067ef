--[[
Reads record and history of one session atomically.

KEYS
  KEYS[1]  record of the session   string
  KEYS[2]  history of the session  list: one entry for each event, oldest first

Returns the record, or false if there is none, and the list of history entries. Read only.
Runs on Redis 6.2 and later and on Valkey.
]]

return { redis.call('GET', KEYS[1]), redis.call('LRANGE', KEYS[2], 0, -1) }
