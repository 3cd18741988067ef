--[[
Commits sessions by compare-and-set: each only if its record still has the version that was read.
On a cluster all sessions of a call are of one shard.

KEYS, five for each session:
  board         of its shard            sorted set: session ids by probability
  last seen     of its shard            sorted set: session ids by time of last commit, ms, Redis' clock
  closed        of its shard            stream: see `closing.lua`, whose text precedes this one
  record        of the session          string: one codec byte, eight bytes of version, the rest
  history       of the session          list: one entry for each event, oldest first
then two for each decision of a rule:
  decisions     of its shard            stream: fields `id`, the session id, and `decision`, JSON
  fired         of its shard and day    hash: number of decisions by rule and group: `voucher:control`

ARGV
  ARGV[1]       idle time that ends a session, in milliseconds
  ARGV[2]       grace time in milliseconds: how much longer the history of an open session stays, to be closed
  ARGV[3]       most entries of `closed`, approximate
  ARGV[4]       lifetime of `closed` in milliseconds
  ARGV[5]       number of sessions
  ARGV[6]       most entries of `decisions`, approximate
  ARGV[7]       lifetime of `decisions` in milliseconds
  ARGV[8]       lifetime of `fired` in milliseconds
  ARGV[9]       number of decisions
  then for each decision:
    session     number of its session in this call, from 1
    decision    the decision as JSON
    label       its rule and group
  then for each session:
    id          session id
    expected    version that was read, eight bytes; empty: there must be no record
    record      the new record, its version inside
    score       probability for the board; empty: remove the session from the board
    closing     facts for `closed` if this commit closes the session; 'closed' if an earlier one did; else empty;
                'restart' precedes it if the session begins anew after its purchase
    count       number of history entries that follow
    entry...    history entries to append, oldest first

Returns one integer for each session: 1 committed; 0 the record has another version, and nothing was changed.

A record that already has the new version counts as committed: an earlier attempt succeeded and its reply was lost. So
a commit may be sent again. Versions are random and never reused, so a new session under the id of an expired one is
never taken for the expired one.
The decisions of a session are appended to `decisions` and counted if and only if its record is written, so each is there
once.
A commit that closes a session appends the session to `closed`. A commit that starts a session under the id of an ended
session that was not closed yet first appends the ended one to `closed`. If the record is gone and the idle time has not
passed, the server has evicted it, so the session's outcome is unknown, and so is that of the rest of the visit. Only
these commits read a history.
Records expire by the same clock as `seen`, to the millisecond: a session older in `seen` than the idle time has no
record. The two sorted sets expire at least half the grace time after the histories, so that a late sweeper can still
count the sessions whose history has expired.
Runs on Redis 6.2 and later and on Valkey. Reads only the version of the old record.
]]

local call = redis.call
local idle_ms, grace_ms = tonumber(ARGV[1]), tonumber(ARGV[2])
local longest, kept_ms = ARGV[3], ARGV[4]
local time = call('TIME')
local now_ms = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
-- As text, because Lua writes a number of this size with an exponent.
local seen_ms = string.format('%.0f', now_ms)
local ends_ms = string.format('%.0f', now_ms + idle_ms)
local forgotten_ms = string.format('%.0f', now_ms + idle_ms + grace_ms)
local sets_end_ms = string.format('%.0f', now_ms + idle_ms + 2 * grace_ms)
local sets_least_ms = idle_ms + 1.5 * grace_ms
local sessions = tonumber(ARGV[5])
local decisions_kept, decisions_kept_ms, fired_kept_ms, decisions = ARGV[6], ARGV[7], ARGV[8], tonumber(ARGV[9])
local results = {}
local board_of, has_grown = {}, {}
local decided = {}
for decision = 1, decisions do
  local session = tonumber(ARGV[7 + 3 * decision])
  decided[session] = decided[session] or {}
  table.insert(decided[session], decision)
end
local position = 10 + 3 * decisions

for session = 1, sessions do
  local first = 5 * session - 4
  local board_key, seen_key, closed_key = KEYS[first], KEYS[first + 1], KEYS[first + 2]
  local record_key, history_key = KEYS[first + 3], KEYS[first + 4]
  local id, expected, record, score = ARGV[position], ARGV[position + 1], ARGV[position + 2], ARGV[position + 3]
  local closing, count = ARGV[position + 4], tonumber(ARGV[position + 5])
  position = position + 6

  local stored = call('GETRANGE', record_key, '1', '8')
  if stored == expected then
    if expected == '' then
      local before_ms = call('ZSCORE', seen_key, id)
      local has_ended = before_ms and tonumber(before_ms) <= now_ms - idle_ms
      local has_history = call('EXISTS', history_key) == 1
      if has_history then
        append_closed(
          closed_key, longest, kept_ms, id, has_ended and IDLED_OUT or EVICTED, before_ms or seen_ms, history_key
        )
        call('DEL', history_key)
      end
      if not has_ended and (has_history or before_ms) then
        call('RPUSH', history_key, START_UNKNOWN)
      end
    elseif string.sub(closing, 1, 7) == 'restart' then
      -- Its purchase is in `closed` already.
      closing = string.sub(closing, 8)
      call('DEL', history_key)
    end
    -- Before the record: if a key has another type, a command fails before anything has changed.
    if decided[session] then
      call('LRANGE', history_key, 0, 0)
    end
    for _, decision in ipairs(decided[session] or {}) do
      local decisions_key, fired_key = KEYS[5 * sessions + 2 * decision - 1], KEYS[5 * sessions + 2 * decision]
      call('XADD', decisions_key, 'MAXLEN', '~', decisions_kept, '*', 'id', id, 'decision', ARGV[8 + 3 * decision])
      call('PEXPIRE', decisions_key, decisions_kept_ms)
      call('HINCRBY', fired_key, ARGV[9 + 3 * decision], 1)
      call('PEXPIRE', fired_key, fired_kept_ms)
    end
    for entry = position, position + count - 1 do
      call('RPUSH', history_key, ARGV[entry])
    end
    call('SET', record_key, record, 'PXAT', ends_ms)
    -- The outcome of a closed session is already written, so its history expires with its record.
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
  -- Both sets expire together. One read usually shows that no write is needed; two writes would also go to every
  -- replica and into the append-only file. A board that was empty did not exist, so its expiry has to be set.
  if has_grown[board_key] or call('PTTL', seen_key) < sets_least_ms then
    call('PEXPIREAT', board_key, sets_end_ms)
    call('PEXPIREAT', seen_key, sets_end_ms)
  end
end

return results
