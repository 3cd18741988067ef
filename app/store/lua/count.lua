--[[
Adds counts to hashes, once however often the call is sent.

KEYS
  KEYS[1]    marker   string: set when the counts were added
  KEYS[2..]  hashes   field to integer

ARGV
  ARGV[1]    lifetime of the marker in milliseconds: longer than a call may be on its way
  ARGV[2]    lifetime of the hashes in milliseconds
  then for each hash:
    count       how many fields follow
    field, add  name, and what to add

Returns 1 if the counts were added, 0 if they were before.
Runs on Redis 6.2 and later and on Valkey.
]]

if not redis.call('SET', KEYS[1], '1', 'NX', 'PX', ARGV[1]) then
  return 0
end
local position = 3
for hash = 2, #KEYS do
  local count = tonumber(ARGV[position])
  position = position + 1
  for _ = 1, count do
    redis.call('HINCRBY', KEYS[hash], ARGV[position], ARGV[position + 1])
    position = position + 2
  end
  redis.call('PEXPIRE', KEYS[hash], ARGV[2])
end
return 1
