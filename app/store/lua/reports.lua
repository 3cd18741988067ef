--[[
Reads the reports of the replicas that are alive.

KEYS
  KEYS[1]  replicas  sorted set: their names by the time of their last report, ms, server's clock
  KEYS[2]  reports   hash: the last report of each

ARGV
  ARGV[1]  for how long a report counts, ms
  ARGV[2]  most replicas, the last heard of first

Returns name and report of each. Changes nothing. Runs on Redis 6.2 and later and on Valkey.
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
