--[[
Lists sessions of several shards that have had no commit for a while, for rules that fire after idle time.

KEYS, two for each shard
  KEYS[2i-1]    board of the shard      sorted set: session ids by probability
  KEYS[2i]      last seen of the shard  sorted set: session ids by time of last commit, ms, Redis' clock

ARGV
  ARGV[1]       idle time in milliseconds
  ARGV[2]       how far back to look where no place is known, ms
  ARGV[3]       smallest probability
  ARGV[4]       largest probability
  ARGV[5]       most sessions of a shard to examine, approximate
  then for each shard:
  ARGV[i+5]     place up to which the caller has looked: a time in `seen`; empty: none

Returns for each shard: the new place, 1 if there is more to examine, else 0, and the ids of open sessions of such a
probability. Examines only sessions that became idle since the last look, so the work does not grow with the number of
live ones. Sessions of one millisecond are examined together, since the next look starts after them.
Read only. Runs on Redis 6.2 and later and on Valkey.
]]

local call = redis.call
local idle_ms, most = tonumber(ARGV[1]), tonumber(ARGV[5])
local low, high = tonumber(ARGV[3]), tonumber(ARGV[4])
local time = call('TIME')
local upto_ms = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000) - idle_ms
local upto = string.format('%.0f', upto_ms)
local replies = {}

for shard = 1, #KEYS / 2 do
  local board_key, seen_key, place = KEYS[2 * shard - 1], KEYS[2 * shard], ARGV[shard + 5]
  local from_ms = place == '' and upto_ms - tonumber(ARGV[2]) or tonumber(place)
  -- After the clock has gone back, sessions are examined again; their marks keep them from a second decision.
  local from = string.format('(%.0f', math.min(from_ms, upto_ms))
  local found = call('ZRANGEBYSCORE', seen_key, from, upto, 'WITHSCORES', 'LIMIT', 0, most)
  local reply = { upto, 0 }
  local ids = {}
  local last = #found == 2 * most and found[#found] or nil
  for place_of_id = 1, #found, 2 do
    if found[place_of_id + 1] ~= last then
      ids[#ids + 1] = found[place_of_id]
    end
  end
  if last then
    for _, id in ipairs(call('ZRANGEBYSCORE', seen_key, last, last)) do
      ids[#ids + 1] = id
    end
    reply = { last, 1 }
  end
  for _, id in ipairs(ids) do
    local probability = tonumber(call('ZSCORE', board_key, id) or -1)
    if low <= probability and probability <= high then
      reply[#reply + 1] = id
    end
  end
  replies[shard] = reply
end
return replies
