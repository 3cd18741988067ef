--[[
Counts the live sessions of several shards, the open ones among them, and the open ones by class of probability.

KEYS, two for each shard, i = 1, 2, ...
  KEYS[2i-1]  board of the shard      sorted set: session ids by probability
  KEYS[2i]    last seen of the shard  sorted set: session ids by time of last commit, ms, Redis' clock

ARGV
  ARGV[1]     idle time after which a session has ended, ms
  ARGV[2..]   edges between the classes of probability, ascending; an edge belongs to the class above it

Returns the number of live sessions, of open ones, and of open ones in each class (edges plus one), summed over shards.

Ended sessions stay in both sets until the sweeper removes them or a commit reuses their id. Up to 256 of them in a
shard are found and not counted; further ones count as open.
Read only. Takes O(log n) for each class. Runs on Redis 6.2 and later and on Valkey.
]]

local MOST_ENDED = 256

local time = redis.call('TIME')
local alive_ms = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000) - tonumber(ARGV[1])
local alive, ended = string.format('%.0f', alive_ms), string.format('(%.0f', alive_ms)
local classes = #ARGV

local reply = { 0, 0 }
for class = 1, classes do
  reply[2 + class] = 0
end

-- Counts by bisection, because most classes of a shop are empty.
local function divide(board_key, first, last, count)
  if count == 0 then
    return
  end
  if first == last then
    reply[2 + first] = reply[2 + first] + count
    return
  end
  local middle = math.floor((first + last) / 2)
  local from = first == 1 and '-inf' or ARGV[first]
  local lower = redis.call('ZCOUNT', board_key, from, '(' .. ARGV[middle + 1])
  divide(board_key, first, middle, lower)
  divide(board_key, middle + 1, last, count - lower)
end

for shard = 1, #KEYS / 2 do
  local board_key, seen_key = KEYS[2 * shard - 1], KEYS[2 * shard]
  local open = redis.call('ZCARD', board_key)
  reply[1] = reply[1] + redis.call('ZCOUNT', seen_key, alive, '+inf')
  divide(board_key, 1, classes, open)
  for _, id in ipairs(redis.call('ZRANGEBYSCORE', seen_key, '-inf', ended, 'LIMIT', 0, MOST_ENDED)) do
    local probability = redis.call('ZSCORE', board_key, id)
    if probability then
      local class = 1
      while class < classes and tonumber(probability) >= tonumber(ARGV[class + 1]) do
        class = class + 1
      end
      open = open - 1
      reply[2 + class] = reply[2 + class] - 1
    end
  end
  reply[2] = reply[2] + open
end
return reply
