#!lua flags=allow-oom
-- Reads the head and a page of history in one step. A channel that nobody has named before is born here.
--
-- Not marked as read-only, although it mostly is: so a replica, which may lag, refuses it.
--
-- KEYS  head, stream
-- ARGV  the position after which to read ('': the newest), how many events and bytes at most, age of history in µs, how long the head
--       lives in ms
-- gives {head, ended, complete, more, event...}

local function text(number) return string.format('%.0f', number) end

local after, limit, bytes = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3])
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local known = redis.call('HMGET', KEYS[1], 'position', 'birth', 'ended')
local head, birth, ended = known[1], known[2], known[3] and 1 or 0
if not head then
  redis.call('UNLINK', KEYS[2])
  head, birth = text(now), text(now)
  redis.call('HSET', KEYS[1], 'position', head, 'birth', birth)
end
redis.call('PEXPIRE', KEYS[1], ARGV[5])
redis.call('XTRIM', KEYS[2], 'MINID', '=', text(math.max(now - ARGV[4], 0)))

-- Entries are read in portions, so that a page that ends at its bytes does not fetch all that it leaves out.
local PORTION = 64

local function show(entry)
  return string.match(entry[1], '^%d+') .. ':' .. entry[2][2] .. ':' .. entry[2][6]
end

local shown, weight, full = {}, 0, false

-- Takes the event into the page, or finds the page full. The first event is always taken.
local function take(entry)
  weight = weight + #entry[2][6]
  full = #shown == limit or (weight > bytes and #shown > 0)
  if not full then shown[#shown + 1] = show(entry) end
end

if after == '' then
  local oldest, last = nil, '+'
  while not full and #shown < limit do
    local wanted = math.min(limit - #shown, PORTION)
    local entries = redis.call('XREVRANGE', KEYS[2], last, '-', 'COUNT', wanted)
    for _, entry in ipairs(entries) do
      take(entry)
      if full then break end
      oldest = entry
    end
    if #entries < wanted then break end
    last = '(' .. entries[#entries][1]
  end
  local answer = {head, ended, (oldest and oldest[2][2] or head) == birth and 1 or 0, 0}
  for at = #shown, 1, -1 do answer[#answer + 1] = shown[at] end
  return answer
end

-- Text is compared, not numbers: what a client sends may be beyond what a double can tell apart.
local complete, first, newest, from = after == head, true, nil, after .. '-0'
while not full do
  local wanted = math.min(limit - #shown + 1, PORTION)
  local entries = redis.call('XRANGE', KEYS[2], from, '+', 'COUNT', wanted)
  for _, entry in ipairs(entries) do
    newest = entry[1]
    if newest == after .. '-0' then
      complete = true
    else
      complete, first = complete or (first and entry[2][2] == after), false
      take(entry)
      if full then break end
    end
  end
  if #entries < wanted then break end
  from = '(' .. newest
end
local more = full or newest and newest ~= head .. '-0'
local answer = {head, ended, complete and 1 or 0, more and 1 or 0}
for _, event in ipairs(shown) do answer[#answer + 1] = event end
return answer
