-- Reads the head and a page of history in one step. It adds no key, so it works on a full server,
-- too.
--
-- Not marked as read-only, although it mostly is: so a replica, which may lag, refuses it.
--
-- KEYS  head, stream, epoch, epoch; while a slot of a cluster moves, the channel's own alone: head,
-- stream ARGV  the position after which to read ('': the newest), how many events and bytes at
-- most, age of history in µs, how long the head
--       lives in ms, '1' if an old epoch is as good as a young one, the highest position that the node knows, of the node's own
--       history: events, bytes
-- gives {head, ended, complete, more, event...}, or {} if an epoch must be made first, or if only
-- the epochs, which are not
--       named, could answer

local after, limit, bytes = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3])
local found = redis.call('HMGET', KEYS[1], 'position', 'birth', 'ended', 'floor',
  'events', 'age', 'bytes', 'since', 'upto', 'written')
local head, birth, ended, known = found[1], found[2], found[3] and 1 or 0, tonumber(ARGV[7])
local own = {events = tonumber(ARGV[8]), age = tonumber(ARGV[4]), bytes = tonumber(ARGV[9])}
local largest = {events = tonumber(found[5] or 0), age = tonumber(found[6] or 0), bytes = tonumber(found[7] or 0)}
if head then
  -- The clock is behind what was given. Nodes that do not know of it must go on above it, too.
  if known > now and known > tonumber(head) and known > tonumber(found[4] or 0) then
    redis.call('HSET', KEYS[1], 'floor', text(known))
  end
  -- The largest limits that any node had are kept, see append.lua.
  for what, limit in pairs(own) do
    if limit > largest[what] then
      largest[what] = limit
      redis.call('HSET', KEYS[1], what, text(limit))
    end
  end
  redis.call('PEXPIRE', KEYS[1], text(math.max(tonumber(ARGV[5]), 2 * math.ceil(largest.age / 1000))))
  expire(KEYS[1], KEYS[2], tonumber(head), now, largest.age, found[8], found[9])
else
  if not KEYS[3] then return {} end
  -- A stream without its head (evicted, say): no node can tell what else is gone, so no epoch
  -- proves anything any more.
  if redis.call('UNLINK', KEYS[2]) == 1 then redis.call('UNLINK', KEYS[3], KEYS[4]) end
  local given, young = epoch(KEYS[3], KEYS[4], false)
  if not given or not young and ARGV[6] ~= '1' then return {} end
  head, birth = given, given
end

-- Entries are read in portions, so that a page that ends at its bytes does not fetch all that it
-- leaves out.
local PORTION = 64

-- A node shows what its own rule says: nothing below this position.
local lowest = 0
if own.events == 0 or own.age == 0 then
  lowest = tonumber(head) + 1
else
  if own.age < largest.age then lowest = math.max(now - own.age, 0) end
  local count, total, last = 0, tonumber(found[10] or 0), '+'
  local walk = own.events < largest.events and redis.call('XLEN', KEYS[2]) > own.events
  if not walk and own.bytes < largest.bytes then
    local oldest = redis.call('XRANGE', KEYS[2], text(lowest), '+', 'COUNT', 1)[1]
    walk = oldest and total - tonumber(oldest[2][4]) > 2 * own.bytes
  end
  while walk do
    local some = redis.call('XREVRANGE', KEYS[2], last, text(lowest), 'COUNT', PORTION)
    for _, entry in ipairs(some) do
      count = count + 1
      if count > own.events or total - tonumber(entry[2][4]) > 2 * own.bytes then
        lowest = tonumber(string.match(entry[1], '^%d+')) + 1
        walk = false
        break
      end
      last = '(' .. entry[1]
    end
    walk = walk and #some == PORTION
  end
end

local function show(entry, previous)
  return string.match(entry[1], '^%d+') .. ':' .. previous .. ':' .. entry[2][6]
end

local shown, weight, full = {}, 0, false

-- Takes the event into the page, or finds the page full. The first event is always taken.
local function take(entry, previous)
  weight = weight + #entry[2][6]
  full = #shown == limit or (weight > bytes and #shown > 0)
  if not full then shown[#shown + 1] = show(entry, previous or entry[2][2]) end
end

if after == '' then
  local oldest, last = nil, '+'
  while not full and #shown < limit do
    local wanted = math.min(limit - #shown, PORTION)
    local entries = redis.call('XREVRANGE', KEYS[2], last, text(lowest), 'COUNT', wanted)
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

-- Whether nothing stands between the position asked for and what names this one as its previous.
-- What follows the first position follows every epoch: there was nothing yet.
local unknown = false
local function follows(previous)
  if previous == after then return true end
  if previous ~= birth then return false end
  unknown = unknown or not KEYS[3]
  return not unknown and honours(KEYS[3], KEYS[4], after)
end

-- Text is compared, not numbers: what a client sends may be beyond what a double can tell apart.
local complete, first, newest = head == birth and follows(head) or after == head, true, nil
local from = (tonumber(after) < lowest and text(lowest) or after) .. '-0'
while not full do
  local wanted = math.min(limit - #shown + 1, PORTION)
  local entries = redis.call('XRANGE', KEYS[2], from, '+', 'COUNT', wanted)
  for _, entry in ipairs(entries) do
    newest = entry[1]
    if newest == after .. '-0' then
      complete = true
    else
      local whole = first and (complete or follows(entry[2][2]))
      complete, first = complete or whole, false
      take(entry, whole and after)
      if full then break end
    end
  end
  if #entries < wanted then break end
  from = '(' .. newest
end
if unknown and not complete then return {} end
local more = full or newest and newest ~= head .. '-0'
local answer = {head, ended, complete and 1 or 0, more and 1 or 0}
for _, event in ipairs(shown) do answer[#answer + 1] = event end
return answer
