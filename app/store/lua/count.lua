--[[
Adds counts to hashes; a call that is sent again adds nothing.

KEYS
  KEYS[1]    marker   string: exists once the counts are added
  KEYS[2..]  hashes   field to integer

ARGV
  ARGV[1]    lifetime of the marker in milliseconds: longer than any retry of the call
  ARGV[2]    lifetime of the hashes in milliseconds
  then for each hash:
    count       number of fields that follow
    field, add  name and increment of each

Returns 1 if the counts were added, 0 if they had been added before.
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
