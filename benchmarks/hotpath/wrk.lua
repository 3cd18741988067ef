--[[
Visitors of a shop, for wrk. Reads HOTPATH_TRAFFIC, a Lua file that `benchmarks/hotpath/load.py` writes:

  prefix     what ids of sessions begin with; a text that no earlier run has used, unless `visited` is given
  run        what ids of events begin with; a text that no earlier run has used
  head       request line and headers up to the value of Content-Length
  bodies     list of what stands between the time and the properties in an event's body, constant text
  last       the same for events that end a session with a purchase
  visitors   list of the properties that end a body, constant text; a session draws its own and keeps them
  buyers     share of sessions that end with one
  lengths    list of session lengths to draw from
  slots      sessions that go on at the same time, a thread
  visited    0, or: events go to sessions 1 to `visited` of that prefix, each time another one, none of them ever ends
  batch      events a request; 0: one, as an object
  pause_ms   mean of the exponential pause before each request of a connection; 0: none

Each request has a traceparent, a request id and a body length of its own, as requests of real clients have.
Ids have a fixed width, so that the length of a body is known beforehand; what is left a request is a concatenation.
]]

local traffic = dofile(os.getenv('HOTPATH_TRAFFIC'))
local random, format, floor, concat = math.random, string.format, math.floor, table.concat
local bodies, last, visitors = traffic.bodies, traffic.last, traffic.visitors
local lengths, slots = traffic.lengths, traffic.slots
local ids, left, visitor_of, pieces = {}, {}, {}, {}
local prefix, run, started, posted, time_ms = '', '', 0, 0, ''
local threads = {}
local paddings = {}
for length = 0, 63 do
  paddings[length + 1] = string.rep(' ', length)
end

function setup(thread)
  thread:set('thread_number', #threads)
  table.insert(threads, thread)
end

-- The head of a request with ids of its own; random() has 31 bits, and a trace id of zeros is not allowed.
local function head_of(length)
  local function word()
    return random(1, 2147483647)
  end
  return format(
    '%s%d\r\ntraceparent: 00-%08x%08x%08x%08x-%08x%08x-00\r\nX-Request-Id: %08x%08x%08x%08x\r\n\r\n',
    traffic.head, length, word(), word(), word(), word(), word(), word(), word(), word(), word(), word()
  )
end

local function start(slot)
  started = started + 1
  ids[slot] = format('%ss%010d', prefix, started)
  left[slot] = lengths[random(#lengths)]
  visitor_of[slot] = visitors[random(#visitors)]
end

function init()
  math.randomseed(os.time() + 7919 * thread_number)
  prefix = format('%s%02d', traffic.prefix, thread_number)
  run = format('%s%02d', traffic.run, thread_number)
  for slot = 1, slots do
    start(slot)
  end
end

-- Puts an event's pieces into `pieces` from `at` on, and returns the place behind them.
local function event(at)
  if posted % 256 == 0 then
    time_ms = format('%d000', os.time())
  end
  posted = posted + 1
  local id, body, visitor
  if traffic.visited > 0 then
    local number = random(traffic.visited)
    id = format('%ss%010d', traffic.prefix, number)
    body = bodies[random(#bodies)]
    -- As `single_body` has it, which made these sessions.
    visitor = visitors[number % #visitors + 1]
  else
    local slot = random(slots)
    id, visitor = ids[slot], visitor_of[slot]
    left[slot] = left[slot] - 1
    if left[slot] > 0 then
      body = bodies[random(#bodies)]
    else
      body = random() < traffic.buyers and last[random(#last)] or bodies[random(#bodies)]
      start(slot)
    end
  end
  pieces[at] = '{"event_id":"'
  pieces[at + 1] = format('%se%012d', run, posted)
  pieces[at + 2] = '","session_id":"'
  pieces[at + 3] = id
  pieces[at + 4] = '","timestamp":'
  pieces[at + 5] = time_ms
  pieces[at + 6] = body
  pieces[at + 7] = visitor
  return at + 8
end

function request()
  local at = 1
  if traffic.batch == 0 then
    at = event(at)
  else
    pieces[1] = '['
    at = 2
    for number = 1, traffic.batch do
      if number > 1 then
        pieces[at] = ','
        at = at + 1
      end
      at = event(at)
    end
    pieces[at] = ']'
    at = at + 1
  end
  -- White space after JSON means nothing, so it varies the length and costs the parser little.
  pieces[at] = paddings[random(#paddings)]
  local body = concat(pieces, '', 1, at)
  return head_of(#body) .. body
end

-- Events of a batch that were refused inside an answer of 200. Global, as `done` asks each thread for it.
refused_events = 0
if traffic.batch > 0 then
  -- Only here, as with this function wrk makes a table of every answer's headers.
  function response(status, _, body)
    if status == 200 then
      local _, accepted = string.gsub(body, '"status":200', '')
      refused_events = refused_events + traffic.batch - accepted
    end
  end
end

if traffic.pause_ms > 0 then
  function delay()
    return floor(-traffic.pause_ms * math.log(1 - random()) + 0.5)
  end
end

function done(summary, latency)
  local errors, refused = summary.errors, 0
  for _, thread in ipairs(threads) do
    refused = refused + thread:get('refused_events')
  end
  io.write(format(
    '\nHOTPATH {"requests":%d,"duration_us":%d,"refused":%d,"broken":%d,"refused_events":%d,"mean_us":%.1f,'
      .. '"p50_us":%d,"p90_us":%d,"p99_us":%d,"p999_us":%d,"max_us":%d}\n',
    summary.requests, summary.duration, errors.status, errors.connect + errors.read + errors.write + errors.timeout,
    refused, latency.mean, latency:percentile(50), latency:percentile(90), latency:percentile(99), latency:percentile(99.9),
    latency.max
  ))
end
