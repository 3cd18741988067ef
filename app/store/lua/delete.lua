--[[
Erases all data of one session id, including its closed sessions and decisions that are still in the streams.

KEYS
  KEYS[1]  board of the shard      sorted set: session ids by probability
  KEYS[2]  last seen of the shard  sorted set: session ids by time
  KEYS[3]  record of the session   string
  KEYS[4]  history of the session  list
  KEYS[5]  closed of the shard     stream whose entries have the session id as their first field
  KEYS[6]  outcomes of the shard   stream whose entries have the session id as their first field
  KEYS[7]  decisions of the shard  stream whose entries have the session id as their first field

ARGV
  ARGV[1]  session id

Returns 1 if there was a record, 0 if not.

Reads the streams completely, one page after another: they have no index, and their length is bounded.
A commit that loaded the session before the deletion conflicts, loads again, and starts a new session.
Runs on Redis 6.2 and later and on Valkey.
]]

local PAGE = 100

local existed = redis.call('DEL', KEYS[3])
redis.call('DEL', KEYS[4])
redis.call('ZREM', KEYS[1], ARGV[1])
redis.call('ZREM', KEYS[2], ARGV[1])
for stream = 5, 7 do
  local from = '-'
  while from do
    local entries = redis.call('XRANGE', KEYS[stream], from, '+', 'COUNT', PAGE)
    for _, entry in ipairs(entries) do
      if entry[2][2] == ARGV[1] then
        redis.call('XDEL', KEYS[stream], entry[1])
      end
    end
    from = #entries == PAGE and '(' .. entries[PAGE][1] or nil
  end
end
return existed
