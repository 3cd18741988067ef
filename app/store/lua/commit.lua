--[[
Commits sessions by compare-and-set: each only if its record still has the version that was read.
On a cluster all sessions of a call are of one shard.

KEYS, one for each session:
  record        of the session          string: one codec byte, eight bytes of version, the rest
The script derives its other keys from these, as each word of a call costs time:
  board         of its shard            sorted set: session ids by probability
  last seen     of its shard            sorted set: session ids by time of last commit, ms, Redis' clock
  closed        of its shard            stream: see `closing.lua`, whose text precedes this one
  history       of the session          list: one entry for each event, oldest first
  decisions     of its shard            stream: fields `id`, the session id, and `decision`, JSON
  fired         of its shard and day    hash: number of decisions by rule and group: `voucher:control`
On a cluster these follow in KEYS, so that a node that is moving some of them refuses the call before it changes any.

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
  ARGV[10]      length of what precedes `s:` in the key of a record
  then for each decision:
    session     number of its session in this call, from 1
    day         of `fired`
    decision    the decision as JSON
    label       its rule and group
  then for each session:
    head        bytes: 1 if a record was read, 0 if there must be none; 1 if the session begins anew after its purchase;
                1 if the word `closing` follows; number of history entries (2, the lower one first); version that was
                read (8); probability for the board as text, or nothing to remove the session from the board
    record      the new record, its version inside
    closing     facts for `closed` if this commit closes the session; 'closed' if an earlier one did
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
local start_length = tonumber(ARGV[10])
local results = {}
-- By what the keys of a shard begin with.
local committed, has_grown = {}, {}
local decided = {}
for decision = 1, decisions do
  local session = tonumber(ARGV[7 + 4 * decision])
  decided[session] = decided[session] or {}
  table.insert(decided[session], decision)
end
local position = 11 + 4 * decisions

for session = 1, sessions do
  local record_key = KEYS[session]
  local start, id = string.sub(record_key, 1, start_length), string.sub(record_key, start_length + 3)
  local board_key, seen_key, history_key = start .. 'board', start .. 'seen', start .. 'h:' .. id
  local head, record, closing = ARGV[position], ARGV[position + 1], ''
  local was_read, is_anew, closes, low, high = string.byte(head, 1, 5)
  local count, score = low + 256 * high, string.sub(head, 14)
  local expected = was_read == 1 and string.sub(head, 6, 13) or ''
  position = position + 2
  if closes == 1 then
    closing = ARGV[position]
    position = position + 1
  end

  local stored = call('GETRANGE', record_key, '1', '8')
  if stored == expected then
    if expected == '' then
      local before_ms = call('ZSCORE', seen_key, id)
      local has_ended = before_ms and tonumber(before_ms) <= now_ms - idle_ms
      local has_history = call('EXISTS', history_key) == 1
      if has_history then
        local facts = has_ended and IDLED_OUT or EVICTED
        append_closed(start .. 'closed', longest, kept_ms, id, facts, before_ms or seen_ms, history_key)
        call('DEL', history_key)
      end
      if not has_ended and (has_history or before_ms) then
        call('RPUSH', history_key, START_UNKNOWN)
      end
    elseif is_anew == 1 then
      -- Its purchase is in `closed` already.
      call('DEL', history_key)
    end
    -- Before the record: if a key has another type, a command fails before anything has changed.
    if decided[session] then
      call('LRANGE', history_key, 0, 0)
    end
    for _, decision in ipairs(decided[session] or {}) do
      local decisions_key, fired_key = start .. 'decisions', start .. 'fired:' .. ARGV[8 + 4 * decision]
      call('XADD', decisions_key, 'MAXLEN', '~', decisions_kept, '*', 'id', id, 'decision', ARGV[9 + 4 * decision])
      call('PEXPIRE', decisions_key, decisions_kept_ms)
      call('HINCRBY', fired_key, ARGV[10 + 4 * decision], 1)
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
      has_grown[start] = true
    end
    if closing ~= '' and closing ~= 'closed' then
      append_closed(start .. 'closed', longest, kept_ms, id, closing, seen_ms, history_key)
    end
    results[session] = 1
  elseif stored == string.sub(record, 2, 9) then
    results[session] = 1
  else
    results[session] = 0
  end
  position = position + count
  committed[start] = true
end

for start in pairs(committed) do
  local board_key, seen_key = start .. 'board', start .. 'seen'
  -- Both sets expire together. One read usually shows that no write is needed; two writes would also go to every
  -- replica and into the append-only file. A board that was empty did not exist, so its expiry has to be set.
  if has_grown[start] or call('PTTL', seen_key) < sets_least_ms then
    call('PEXPIREAT', board_key, sets_end_ms)
    call('PEXPIREAT', seen_key, sets_end_ms)
  end
end

return results
