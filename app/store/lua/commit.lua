--[[
Commits sessions, each if and only if its record is still the one that was read. On a cluster all of one shard.

KEYS, five for each session:
  board         of its shard            sorted set: session ids by probability
  last seen     of its shard            sorted set: session ids by the time of their last commit, ms, server's clock
  closed        of its shard            stream: see `closing.lua`, which stands before this text
  record        of the session          string: one codec byte, eight bytes of version, the rest
  history       of the session          list: one entry an event, oldest first

ARGV
  ARGV[1]       idle time that ends a session, in milliseconds
  ARGV[2]       for how many milliseconds more the history of an open session stays, to be closed
  ARGV[3]       entries of `closed` at most, about
  ARGV[4]       lifetime of `closed` in milliseconds
  then for each session:
    id          session id
    expected    version that was read, eight bytes; empty: there must be no record
    record      the new record, its version inside
    score       probability for the board; empty: the session is to leave the board
    closing     facts for `closed` where this commit closes the session; 'closed' where one before it did; else empty
    count       how many history entries follow
    entry...    history entries to append, oldest first

Returns one integer a session: 1 committed, 0 the record is another one now and nothing was changed.

A record that already has the new version counts as committed: a first attempt went through and its reply was lost, so
sending the same commit again is safe. Versions are random and never used twice, hence a session that expired and began
anew never passes for the old one.
A commit that closes a session appends it to `closed`; so does one that begins a session under the id of one that idled
out and was not closed yet. Only those two read a history.
Records and `seen` go by one clock and to the millisecond: who is longer in `seen` than the idle time has no record. The
two sorted sets outlive the histories by half the grace time or more, so that a closer which comes too late still finds
out how many it missed.
Runs on Redis 6.2 and later and on Valkey; touches only the version of the old record.
]]

local call = redis.call
local idle_ms, grace_ms = tonumber(ARGV[1]), tonumber(ARGV[2])
local longest, kept_ms = ARGV[3], ARGV[4]
local time = call('TIME')
local now_ms = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
-- As text: Lua would write a number of this size with an exponent.
local seen_ms = string.format('%.0f', now_ms)
local ends_ms = string.format('%.0f', now_ms + idle_ms)
local forgotten_ms = string.format('%.0f', now_ms + idle_ms + grace_ms)
local sets_end_ms = string.format('%.0f', now_ms + idle_ms + 2 * grace_ms)
local sets_least_ms = idle_ms + 1.5 * grace_ms
local sessions = #KEYS / 5
local results = {}
local board_of, has_grown = {}, {}
local position = 5

for session = 1, sessions do
  local first = 5 * session - 4
  local board_key, seen_key, closed_key = KEYS[first], KEYS[first + 1], KEYS[first + 2]
  local record_key, history_key = KEYS[first + 3], KEYS[first + 4]
  local id, expected, record, score = ARGV[position], ARGV[position + 1], ARGV[position + 2], ARGV[position + 3]
  local closing, count = ARGV[position + 4], tonumber(ARGV[position + 5])
  position = position + 6

  local stored = call('GETRANGE', record_key, '1', '8')
  if stored == expected then
    if expected == '' and call('EXISTS', history_key) == 1 then
      local before_ms = call('ZSCORE', seen_key, id) or seen_ms
      append_closed(closed_key, longest, kept_ms, id, IDLED_OUT, before_ms, history_key)
      call('DEL', history_key)
    end
    -- Before the record: should something else stand under the history's key, then nothing of the session changes.
    for entry = position, position + count - 1 do
      call('RPUSH', history_key, ARGV[entry])
    end
    call('SET', record_key, record, 'PXAT', ends_ms)
    -- What is closed has no outcome left to be written down, so its history need not outlive its record.
    call('PEXPIREAT', history_key, closing == '' and forgotten_ms or ends_ms)
    call('ZADD', seen_key, seen_ms, id)
    if score == '' then
      call('ZREM', board_key, id)
    elseif call('ZADD', board_key, score, id) == 1 then
      has_grown[board_key] = true
    end
    if closing ~= '' and closing ~= 'closed' then
      append_closed(closed_key, longest, kept_ms, id, closing, seen_ms, history_key)
    end
    results[session] = 1
  elseif stored == string.sub(record, 2, 9) then
    results[session] = 1
  else
    results[session] = 0
  end
  position = position + count
  board_of[seen_key] = board_key
end

for seen_key, board_key in pairs(board_of) do
  -- Both end together. One read says that neither has to be told so again, where two writes would also go to every
  -- replica and into the append-only file; but a board that was empty, and so did not exist, knows of no end.
  if has_grown[board_key] or call('PTTL', seen_key) < sets_least_ms then
    call('PEXPIREAT', board_key, sets_end_ms)
    call('PEXPIREAT', seen_key, sets_end_ms)
  end
end

return results
