--[[
Reads one session whole, record and history of the same moment.

KEYS
  KEYS[1]  record of the session   string
  KEYS[2]  history of the session  list: one entry an event, oldest first

Returns the record, false if there is none, and the list of the history's entries. Changes nothing.
Runs on Redis 6.2 and later and on Valkey.
]]

return { redis.call('GET', KEYS[1]), redis.call('LRANGE', KEYS[2], 0, -1) }
