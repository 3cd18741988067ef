--[[
Assigns events of a visitor to sessions: one belongs to the session whose time is within the idle time of its own, the
nearest; where there is none, it starts one. The same event again gets the same session.

KEYS
  KEYS[1]  string: the visitor's last sessions, `<start> <first> <last>;` each, in ms

ARGV
  ARGV[1]  idle time, ms
  ARGV[2]  how long the visitor is remembered, ms
  ARGV[3]  most sessions of a visitor
  ARGV[4]  time of the first event, ms; then those of the others

Returns the start of each event's session. A start is the time of the event that came first, and never changes, though
earlier events may come later. Sessions of a visitor never overlap, and never become one.
Runs on Redis 6.2 and later and on Valkey.
]]

local idle_ms, most = tonumber(ARGV[1]), tonumber(ARGV[3])
local sessions, starts = {}, {}
for start, first, last in string.gmatch(redis.call('GET', KEYS[1]) or '', '(%d+) (%d+) (%d+);') do
  sessions[#sessions + 1] = {start = start, first = tonumber(first), last = tonumber(last)}
end
for place = 4, #ARGV do
  local at = tonumber(ARGV[place])
  local nearest, distance
  for _, session in ipairs(sessions) do
    local away = math.max(session.first - at, at - session.last, 0)
    if away <= idle_ms and (distance == nil or away <= distance) then
      nearest, distance = session, away
    end
  end
  if nearest == nil then
    nearest = {start = ARGV[place], first = at, last = at}
    sessions[#sessions + 1] = nearest
    if #sessions > most then
      table.remove(sessions, 1)
    end
  end
  nearest.first, nearest.last = math.min(nearest.first, at), math.max(nearest.last, at)
  starts[#starts + 1] = nearest.start
end
local stored = {}
for place, session in ipairs(sessions) do
  -- As text: Lua would write a number of this size with an exponent.
  stored[place] = string.format('%s %.0f %.0f;', session.start, session.first, session.last)
end
redis.call('SET', KEYS[1], table.concat(stored), 'PX', ARGV[2])
return starts
