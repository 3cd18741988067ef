--[[
Counts requests in a sliding window: those of the current window, and those of the window before, weighted by the part
of it that the sliding window still covers. The first request starts a window.

KEYS
  KEYS[1]       hash: start of the current window, its count, and the count of the window before

ARGV
  ARGV[1]       most requests per window
  ARGV[2]       length of a window in milliseconds
  ARGV[3]       requests to add

Returns 1 if they were added, 0 if they exceed the limit and nothing was changed.

Runs on Redis 6.2 and later and on Valkey.
]]

local limit, window_ms, amount = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])
local time = redis.call('TIME')
local now_ms = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
local stored = redis.call('HMGET', KEYS[1], 'start_ms', 'count', 'before')
local start_ms, count, before = tonumber(stored[1] or now_ms), tonumber(stored[2] or 0), tonumber(stored[3] or 0)
local windows = math.floor((now_ms - start_ms) / window_ms)
if windows == 1 then
  start_ms, count, before = start_ms + window_ms, 0, count
elseif windows ~= 0 then
  start_ms, count, before = now_ms, 0, 0
end
local covered = 1 - (now_ms - start_ms) / window_ms
if math.floor(before * covered) + count + amount > limit then
  return 0
end
-- As text: Lua would write a number of this size with an exponent.
redis.call('HSET', KEYS[1], 'start_ms', string.format('%.0f', start_ms), 'count', count + amount, 'before', before)
redis.call('PEXPIRE', KEYS[1], string.format('%.0f', start_ms + 2 * window_ms - now_ms))
return 1
