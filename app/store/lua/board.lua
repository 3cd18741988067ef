--[[
Reads the next entries of several shards' boards, highest first, without sessions that have ended.

KEYS, two for each shard, i = 1, 2, ...
  KEYS[2i-1]    board of the shard      sorted set: session ids by probability
  KEYS[2i]      last seen of the shard  sorted set: session ids by time of last commit, ms, Redis' clock

ARGV
  ARGV[1]       idle time after which a session has ended, ms
  ARGV[2]       order: `probability` or `last_seen`
  ARGV[3]       smallest probability
  ARGV[4]       largest probability
  ARGV[5]       earliest last commit, ms
  ARGV[6]       most entries to return for each shard
  ARGV[7]       most entries to examine in each shard
  ARGV[8]       how the session ids begin; empty: any
  then for each shard:
  ARGV[2i+7]    score of the last entry read before; empty: start at the top
  ARGV[2i+8]    session id of that entry; the entry may have been removed since

Returns for each shard: the number of live sessions; 1 if entries follow the last examined one, else 0; score and id of
the last examined entry, or two empty strings; then id and score of each returned entry.

Entries of equal score are sorted by id, descending, byte by byte, as the server sorts them. In the order `last_seen` a
session that has bought has no probability here, so the reader of the records has to check it.
Where few sessions of a shard are recent enough, those are examined, whatever their probability: with the board's own
order, a reader would have to pass all the likelier sessions that were last seen before.
Read only. Takes O(log n) for each examined entry. Runs on Redis 6.2 and later and on Valkey.
]]

local by_probability = ARGV[2] == 'probability'
local smallest, largest = tonumber(ARGV[3]), tonumber(ARGV[4])
local wanted, most = tonumber(ARGV[6]), tonumber(ARGV[7])
local prefix = ARGV[8]

local time = redis.call('TIME')
local alive_ms = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000) - tonumber(ARGV[1])
local alive = string.format('%.0f', alive_ms)
local earliest_ms = math.max(alive_ms, tonumber(ARGV[5]))
local lowest = by_probability and smallest or earliest_ms

-- Lua's `<` depends on the server's locale, so compare bytes.
local function is_below(one, another)
  for place = 1, math.min(#one, #another) do
    local left, right = string.byte(one, place), string.byte(another, place)
    if left ~= right then
      return left < right
    end
  end
  return #one < #another
end

local function fits(other, id)
  if string.sub(id, 1, #prefix) ~= prefix then
    return false
  end
  if by_probability then
    local seen_ms = redis.call('ZSCORE', other, id)
    return seen_ms and tonumber(seen_ms) >= earliest_ms
  end
  if smallest <= 0 and largest >= 1 then
    return true
  end
  local probability = redis.call('ZSCORE', other, id)
  return not probability or (tonumber(probability) >= smallest and tonumber(probability) <= largest)
end

-- Returns the rank, from the top, of the first entry to examine.
local function first_rank(ordered, after_score, after_id)
  if after_score == '' then
    return by_probability and largest < 1 and redis.call('ZCOUNT', ordered, '(' .. ARGV[4], '+inf') or 0
  end
  local first = redis.call('ZCOUNT', ordered, '(' .. after_score, '+inf')
  local stop = first + redis.call('ZCOUNT', ordered, after_score, after_score)
  while first < stop do
    local middle = math.floor((first + stop) / 2)
    if is_below(redis.call('ZREVRANGE', ordered, middle, middle)[1], after_id) then
      stop = middle
    else
      first = middle + 1
    end
  end
  return first
end

-- Returns whether one position comes before another.
local function is_before(score, id, other_score, other_id)
  return score > other_score or (score == other_score and is_below(other_id, id))
end

-- Adds the next of the `count` sessions that were seen last, by probability, to the reply.
local function read_recent(reply, board_key, seen_key, count, after_score, after_id)
  local found = {}
  for _, id in ipairs(redis.call('ZREVRANGE', seen_key, 0, count - 1)) do
    local text = string.sub(id, 1, #prefix) == prefix and redis.call('ZSCORE', board_key, id)
    local score = text and tonumber(text)
    if score and score >= smallest and score <= largest
      and (after_score == '' or is_before(tonumber(after_score), after_id, score, id)) then
      found[#found + 1] = { score = score, text = text, id = id }
    end
  end
  table.sort(found, function(one, other)
    return is_before(one.score, one.id, other.score, other.id)
  end)
  for place = 1, math.min(wanted, #found) do
    reply[#reply + 1] = found[place].id
    reply[#reply + 1] = found[place].text
  end
  if #found > wanted then
    reply[2], reply[3], reply[4] = 1, found[wanted].text, found[wanted].id
  end
  return reply
end

local function read(board_key, seen_key, after_score, after_id)
  local live = redis.call('ZCOUNT', seen_key, alive, '+inf')
  local reply = { live, 0, '', '' }
  if live == 0 then
    return reply
  end
  local ordered, other = seen_key, board_key
  if by_probability then
    ordered, other = board_key, seen_key
    local recent = earliest_ms > alive_ms and redis.call('ZCOUNT', seen_key, string.format('%.0f', earliest_ms), '+inf')
    if recent == 0 then
      return reply
    end
    if recent and recent <= most then
      return read_recent(reply, board_key, seen_key, recent, after_score, after_id)
    end
  end
  local rank = first_rank(ordered, after_score, after_id)
  local found, looked = 0, 0
  while found < wanted and looked < most do
    local last = rank + math.min(wanted, most - looked) - 1
    local entries = redis.call('ZREVRANGE', ordered, rank, last, 'WITHSCORES')
    if #entries == 0 then
      return reply
    end
    for place = 1, #entries, 2 do
      local id, score = entries[place], entries[place + 1]
      if tonumber(score) < lowest then
        return reply
      end
      rank, looked = rank + 1, looked + 1
      reply[3], reply[4] = score, id
      if fits(other, id) then
        found = found + 1
        reply[#reply + 1] = id
        reply[#reply + 1] = score
        if found == wanted then
          break
        end
      end
    end
  end
  local following = redis.call('ZREVRANGE', ordered, rank, rank, 'WITHSCORES')
  if #following > 0 and tonumber(following[2]) >= lowest then
    reply[2] = 1
  end
  return reply
end

local replies = {}
for shard = 1, #KEYS / 2 do
  replies[shard] = read(KEYS[2 * shard - 1], KEYS[2 * shard], ARGV[2 * shard + 7], ARGV[2 * shard + 8])
end
return replies
