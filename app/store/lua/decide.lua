--[[
Stores decisions of rules that fired after idle time, by compare-and-set. The session does not become younger: its place
in `seen` and its lifetime stay.

KEYS
  KEYS[1]  last seen of the shard  sorted set: session ids by time of last commit, ms, Redis' clock
  KEYS[2]  record of the session   string: one codec byte, eight bytes of version, the rest
  KEYS[3]  history of the session  list
  KEYS[4]  decisions of the shard  stream: see `commit.lua`
  KEYS[5]  fired of the day        hash: see `commit.lua`

ARGV
  ARGV[1]  session id
  ARGV[2]  version of the record that was read
  ARGV[3]  the new record
  ARGV[4]  idle time that the session must have had, in milliseconds
  ARGV[5]  most entries of `decisions`, approximate
  ARGV[6]  lifetime of `decisions` in milliseconds
  ARGV[7]  lifetime of `fired` in milliseconds
  then for each decision:
    entry     its entry in the history
    decision  the decision as JSON
    label     its rule and group

Returns 1 if the decisions are stored, also by an earlier attempt; 0 if an event or another replica came first.
Runs on Redis 6.2 and later and on Valkey.
]]

local call = redis.call
local id, record = ARGV[1], ARGV[3]
local stored = call('GETRANGE', KEYS[2], '1', '8')
if stored == string.sub(record, 2, 9) then
  return 1
end
local time = call('TIME')
local now_ms = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
local seen_ms = tonumber(call('ZSCORE', KEYS[1], id) or now_ms)
if stored ~= ARGV[2] or seen_ms > now_ms - tonumber(ARGV[4]) or call('EXISTS', KEYS[3]) == 0 then
  return 0
end
for place = 8, #ARGV, 3 do
  call('RPUSH', KEYS[3], ARGV[place])
  call('XADD', KEYS[4], 'MAXLEN', '~', ARGV[5], '*', 'id', id, 'decision', ARGV[place + 1])
  call('HINCRBY', KEYS[5], ARGV[place + 2], 1)
end
call('PEXPIRE', KEYS[4], ARGV[6])
call('PEXPIRE', KEYS[5], ARGV[7])
call('SET', KEYS[2], record, 'KEEPTTL')
return 1
