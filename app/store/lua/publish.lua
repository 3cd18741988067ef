--[[
Moves closed sessions of one shard to the stream `outcomes`; each is moved once even if several replicas try.

KEYS
  KEYS[1]  closed of the shard    stream: see `closing.lua`
  KEYS[2]  outcomes of the shard  stream: fields `id`, the session id, and `session`, JSON (docs/outcomes.md)

ARGV
  ARGV[1]  most entries of `outcomes`, approximate; 0: write none
  ARGV[2]  lifetime of entries of `outcomes` in milliseconds
  then for each session:
    entry  id of its entry in `closed`
    id     session id
    json   the session as JSON; empty: the entry is unreadable and is only removed

Returns one integer for each session: 1 moved; 0 another replica moved it, or it was erased.
Runs on Redis 6.2 and later and on Valkey.
]]

local closed_key, outcomes_key = KEYS[1], KEYS[2]
local longest, kept_ms = tonumber(ARGV[1]), tonumber(ARGV[2])
local time = redis.call('TIME')
local now_ms = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
local results = {}

for position = 3, #ARGV, 3 do
  local moved = redis.call('XDEL', closed_key, ARGV[position])
  if moved == 1 and longest > 0 and ARGV[position + 2] ~= '' then
    redis.call(
      'XADD', outcomes_key, 'MAXLEN', '~', longest, '*', 'id', ARGV[position + 1], 'session', ARGV[position + 2]
    )
  end
  results[#results + 1] = moved
end
if redis.call('EXISTS', outcomes_key) == 1 then
  redis.call('XTRIM', outcomes_key, 'MINID', '~', string.format('%.0f', math.max(0, now_ms - kept_ms)))
  redis.call('PEXPIRE', outcomes_key, ARGV[2])
end

return results
