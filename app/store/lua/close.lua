--[[
Closes sessions of one shard whose idle time has passed; each is closed once even if several replicas try.

KEYS
  KEYS[1]       board of the shard      sorted set: session ids by probability
  KEYS[2]       last seen of the shard  sorted set: session ids by time of last commit, ms, Redis' clock
  KEYS[3]       closed of the shard     stream: see `closing.lua`, whose text precedes this one
  then two for each session, i = 1, 2, ...:
  KEYS[2i+2]    record of the session   string
  KEYS[2i+3]    history of the session  list: one entry for each event, oldest first

ARGV
  ARGV[1]       idle time that ends a session, in milliseconds
  ARGV[2]       most entries of `closed`, approximate
  ARGV[3]       lifetime of `closed` in milliseconds
  ARGV[4]       bytes of histories after which no other session is closed
  ARGV[4+i]     session id

Returns one integer for each session: 0 it has not ended, or was removed before; 1 closed as not bought; 2 it was open
and its history has expired, so its outcome is lost; 3 it was closed before; 4 it is left for a later call. In cases 1
to 3 its keys are removed.

The script checks each session again. It skips a session that got an event, or whose id was used again, since the caller
listed it.
Runs on Redis 6.2 and later and on Valkey.
]]

local board_key, seen_key, closed_key = KEYS[1], KEYS[2], KEYS[3]
local longest, kept_ms = ARGV[2], ARGV[3]
local time = redis.call('TIME')
local now_ms = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
local results = {}
local size = 0

for session = 1, (#KEYS - 3) / 2 do
  local record_key, history_key, id = KEYS[2 * session + 2], KEYS[2 * session + 3], ARGV[4 + session]
  local seen_ms = redis.call('ZSCORE', seen_key, id)
  local is_over = seen_ms
    and tonumber(seen_ms) < now_ms - tonumber(ARGV[1])
    and redis.call('EXISTS', record_key) == 0
  if not is_over then
    results[session] = 0
  elseif size >= tonumber(ARGV[4]) then
    results[session] = 4
  else
    if redis.call('EXISTS', history_key) == 1 then
      size = size + append_closed(closed_key, longest, kept_ms, id, IDLED_OUT, seen_ms, history_key)
      redis.call('DEL', history_key)
      results[session] = 1
    elseif redis.call('ZSCORE', board_key, id) then
      results[session] = 2
    else
      results[session] = 3
    end
    redis.call('ZREM', seen_key, id)
    redis.call('ZREM', board_key, id)
  end
end

return results
