--[[
Shared by several scripts, whose text follows this one: appends a session to the stream `closed`, and
returns the bytes of its history.

An entry of the stream `closed` has four fields, in this order:
  id      session id
  facts   JSON: the outcome and its source
  seen    time of the last commit, ms, Redis' clock
  events  history as one MessagePack array: an `array 32` header, then the entries unchanged

A history that begins with START_UNKNOWN continues an evicted session, so its outcome is unknown whatever the facts say.
]]

-- The server evicted the record of a session that had not ended, or the session's place in `seen`.
local EVICTED = '{"outcome":"unknown","closed_by":"eviction"}'
-- Kind 0 of `history_codec.py`.
local START_UNKNOWN = '\145\0'
local IDLED_OUT = '{"outcome":"none","closed_by":"idle"}'

local function append_closed(closed_key, longest, kept_ms, id, facts, seen_ms, history_key)
  local entries = redis.call('LRANGE', history_key, 0, -1)
  local count = #entries
  local head = string.char(
    0xdd,
    math.floor(count / 16777216) % 256,
    math.floor(count / 65536) % 256,
    math.floor(count / 256) % 256,
    count % 256
  )
  local events = head .. table.concat(entries)
  if entries[1] == START_UNKNOWN then
    facts = EVICTED
  end
  redis.call(
    'XADD', closed_key, 'MAXLEN', '~', longest, '*',
    'id', id, 'facts', facts, 'seen', seen_ms, 'events', events
  )
  redis.call('PEXPIRE', closed_key, kept_ms)
  return #events
end

