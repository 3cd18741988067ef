--[[
Reads sessions for the board atomically: the record of each and the end of its history.

KEYS, two for each session, i = 1, 2, ...
  KEYS[2i-1]  record of the session   string
  KEYS[2i]    history of the session  list: one entry for each event, oldest first

ARGV
  ARGV[1]     number of last events of each history, at least 1

Returns for each session its record, or false if there is none, and the entries from these events on: decisions of rules
stand between them (app/store/history_codec.py). Read only.
Runs on Redis 6.2 and later and on Valkey.
]]

-- The second byte of an entry is its kind.
local DECISION = 127

local function last_events(history_key, wanted)
  local asked = wanted
  while true do
    local entries = redis.call('LRANGE', history_key, -asked, -1)
    local events = 0
    for _, entry in ipairs(entries) do
      if string.byte(entry, 2) ~= DECISION then
        events = events + 1
      end
    end
    if events >= wanted or #entries < asked then
      return entries
    end
    asked = 4 * asked
  end
end

local wanted = tonumber(ARGV[1])
local rows = {}
for session = 1, #KEYS / 2 do
  rows[session] = { redis.call('GET', KEYS[2 * session - 1]), last_events(KEYS[2 * session], wanted) }
end
return rows
