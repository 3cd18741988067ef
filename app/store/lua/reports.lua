--[[
Reads the reports of all live replicas.

KEYS
  KEYS[1]  replicas  sorted set: replica names by time of last report, ms, Redis' clock
  KEYS[2]  reports   hash: last report of each replica

ARGV
  ARGV[1]  lifetime of a report, ms
  ARGV[2]  most replicas; the most recent reports come first

Returns name and report of each. Read only. Runs on Redis 6.2 and later and on Valkey.
]]

local time = redis.call('TIME')
local since_ms = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000) - tonumber(ARGV[1])
local names = redis.call(
  'ZREVRANGEBYSCORE', KEYS[1], '+inf', string.format('%.0f', since_ms), 'LIMIT', 0, tonumber(ARGV[2])
)
local reply = {}
for _, name in ipairs(names) do
  local report = redis.call('HGET', KEYS[2], name)
  if report then
    reply[#reply + 1] = name
    reply[#reply + 1] = report
  end
end
return reply
