--[[
Moves closed sessions of one shard to the stream `outcomes`; each is moved once even if several replicas try.

KEYS
  KEYS[1]  closed of the shard    stream: see `closing.lua`
  KEYS[2]  outcomes of the shard  stream: fields `id`, the session id, and `session`, JSON (docs/outcomes.md)
  KEYS[3]  experiments            hash: sums over sessions in which rules decided. Fields are rule, group and `n`,
                                  sessions, `b`, buyers, `v`, purchases by currency, `r`, revenue, or `q`, squares of
                                  the revenue, these three with the currency: `voucher:control:n`, `voucher:control:rEUR`
  KEYS[4...]  parts of it         hashes: the same sums over sessions that were decided in a time bucket

ARGV
  ARGV[1]  most entries of `outcomes`, approximate; 0: write none
  ARGV[2]  lifetime of entries of `outcomes` in milliseconds
  ARGV[3]  lifetime of `experiments` in milliseconds
  ARGV[4]  lifetime of its parts in milliseconds
  then for each session:
    entry     id of its entry in `closed`
    id        session id
    json      the session as JSON; empty: the entry is unreadable and is only removed
    value     of its purchase; empty: it has not bought
    square    of that
    currency  of the value; empty: not known
    part      number of the key of its part; 0: none
    count     number of labels that follow
    label...  rule and group of each rule that decided in the session: `voucher:control`

Returns one integer for each session: 1 moved; 0 another replica moved it, or it was erased.
Runs on Redis 6.2 and later and on Valkey.
]]

local closed_key, outcomes_key = KEYS[1], KEYS[2]
local longest, kept_ms = tonumber(ARGV[1]), tonumber(ARGV[2])
local time = redis.call('TIME')
local now_ms = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
local results = {}

local counted = {}

local function count(key, label, value, square, currency)
  counted[key] = true
  redis.call('HINCRBY', key, label .. ':n', 1)
  if value ~= '' then
    redis.call('HINCRBY', key, label .. ':b', 1)
    redis.call('HINCRBY', key, label .. ':v' .. currency, 1)
    redis.call('HINCRBYFLOAT', key, label .. ':r' .. currency, value)
    redis.call('HINCRBYFLOAT', key, label .. ':q' .. currency, square)
  end
end

local position = 5
while position <= #ARGV do
  local value, square, currency = ARGV[position + 3], ARGV[position + 4], ARGV[position + 5]
  local part, labels = tonumber(ARGV[position + 6]), tonumber(ARGV[position + 7])
  local moved = redis.call('XDEL', closed_key, ARGV[position])
  if moved == 1 then
    if longest > 0 and ARGV[position + 2] ~= '' then
      redis.call(
        'XADD', outcomes_key, 'MAXLEN', '~', longest, '*', 'id', ARGV[position + 1], 'session', ARGV[position + 2]
      )
    end
    for label = position + 8, position + 7 + labels do
      count(KEYS[3], ARGV[label], value, square, currency)
      if part > 0 then
        count(KEYS[part], ARGV[label], value, square, currency)
      end
    end
  end
  results[#results + 1] = moved
  position = position + 8 + labels
end
for key in pairs(counted) do
  redis.call('PEXPIRE', key, key == KEYS[3] and ARGV[3] or ARGV[4])
end
if redis.call('EXISTS', outcomes_key) == 1 then
  redis.call('XTRIM', outcomes_key, 'MINID', '~', string.format('%.0f', math.max(0, now_ms - kept_ms)))
  redis.call('PEXPIRE', outcomes_key, ARGV[2])
end

return results
