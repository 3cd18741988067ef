--[[
Reads sessions for the board atomically: the record of each and the end of its history.

KEYS, two for each session, i = 1, 2, ...
  KEYS[2i-1]  record of the session   string
  KEYS[2i]    history of the session  list: one entry for each event, oldest first

ARGV
  ARGV[1]     number of last entries of each history, at least 1

Returns for each session its record, or false if there is none, and the list of entries. Read only.
Runs on Redis 6.2 and later and on Valkey.
]]

local first = -tonumber(ARGV[1])
local rows = {}
for session = 1, #KEYS / 2 do
  rows[session] = { redis.call('GET', KEYS[2 * session - 1]), redis.call('LRANGE', KEYS[2 * session], first, -1) }
end
return rows
