#!lua flags=allow-oom
-- Reads the head and a page of history in one step. A channel that nobody has named before is born here.
--
-- Not marked as read-only, although it mostly is: so a replica, which may lag, refuses it.
--
-- KEYS  head, stream
-- ARGV  the position after which to read ('': the newest), how many events at most, age of history in µs, how long the head lives in ms
-- gives {head, ended, complete, more, event...}

local function text(number) return string.format('%.0f', number) end

local after, limit = ARGV[1], tonumber(ARGV[2])
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local known = redis.call('HMGET', KEYS[1], 'position', 'birth', 'ended')
local head, birth, ended = known[1], known[2], known[3] and 1 or 0
if not head then
  redis.call('UNLINK', KEYS[2])
  head, birth = text(now), text(now)
  redis.call('HSET', KEYS[1], 'position', head, 'birth', birth)
end
redis.call('PEXPIRE', KEYS[1], ARGV[4])
redis.call('XTRIM', KEYS[2], 'MINID', '=', text(math.max(now - ARGV[3], 0)))

local function show(entry)
  return string.match(entry[1], '^%d+') .. ':' .. entry[2][2] .. ':' .. entry[2][6]
end

if after == '' then
  local entries = limit > 0 and redis.call('XREVRANGE', KEYS[2], '+', '-', 'COUNT', text(limit)) or {}
  local oldest = entries[#entries]
  local answer = {head, ended, (oldest and oldest[2][2] or head) == birth and 1 or 0, 0}
  for at = #entries, 1, -1 do answer[#answer + 1] = show(entries[at]) end
  return answer
end

-- Text is compared, not numbers: what a client sends may be beyond what a double can tell apart.
local entries = redis.call('XRANGE', KEYS[2], after .. '-0', '+', 'COUNT', text(limit + 1))
local complete = after == head
local first = 1
if entries[1] then
  if entries[1][1] == after .. '-0' then
    complete, first = true, 2
  elseif entries[1][2][2] == after then
    complete = true
  end
end
local last = math.min(#entries, first + limit - 1)
local more = #entries > 0 and entries[#entries][1] ~= head .. '-0' or last < #entries
local answer = {head, ended, complete and 1 or 0, more and 1 or 0}
for at = first, last do answer[#answer + 1] = show(entries[at]) end
return answer
