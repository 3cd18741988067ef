--[[
Lists a sweeper's work in one shard: sessions that have ended, and closed sessions that are not published yet.

KEYS
  KEYS[1]  closer of the shard     string: the replica that sweeps the shard now
  KEYS[2]  last seen of the shard  sorted set: session ids by time of last commit, ms, Redis' clock
  KEYS[3]  closed of the shard     stream: see `closing.lua`

ARGV
  ARGV[1]  name of the calling replica
  ARGV[2]  milliseconds for which the caller owns the shard if there is work
  ARGV[3]  idle time that ends a session, in milliseconds
  ARGV[4]  most session ids
  ARGV[5]  most closed sessions
  ARGV[6]  bytes of closed sessions after which no other is read

Returns the ids and the entries of `closed`, each oldest first, and 1 if there may be more of either, else 0. Returns two
empty lists if there is no work or another replica owns the shard. Ownership only saves work: a second sweep would change nothing.
Runs on Redis 6.2 and later and on Valkey.
]]

local time = redis.call('TIME')
local now_ms = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
local before_ms = string.format('(%.0f', now_ms - tonumber(ARGV[3]))
local ids = redis.call('ZRANGEBYSCORE', KEYS[2], '-inf', before_ms, 'LIMIT', 0, ARGV[4])
local entries, size, start = {}, 0, '-'
while #entries < tonumber(ARGV[5]) and size < tonumber(ARGV[6]) do
  local entry = redis.call('XRANGE', KEYS[3], start, '+', 'COUNT', 1)[1]
  if not entry then
    break
  end
  entries[#entries + 1] = entry
  for _, value in ipairs(entry[2]) do
    size = size + #value
  end
  start = '(' .. entry[1]
end
if #ids == 0 and #entries == 0 then
  return { {}, {}, 0 }
end
local closer = redis.call('GET', KEYS[1])
if closer and closer ~= ARGV[1] then
  return { {}, {}, 0 }
end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
local is_more = #ids == tonumber(ARGV[4]) or #entries == tonumber(ARGV[5]) or size >= tonumber(ARGV[6])
return { ids, entries, is_more and 1 or 0 }
