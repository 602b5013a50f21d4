#!lua flags=allow-oom
-- Reads members, and keeps the nodes' leases: which node lives, and in which channels it has
-- members. It adds no key and takes things away, so it works on a full server, too. What adds keys
-- is in enter.lua.
--
-- ARGV  what; then
-- 'list'     KEYS members; ARGV how long they are remembered in ms: gives field, value, ...
-- 'expire'   KEYS members; ARGV node: removes all of the node's
-- 'heartbeat'
--            KEYS beats; ARGV node, how long it lives in ms: gives whether it lived, the living,
--            some of the dead, whether it has a lease at all
-- 'living'   KEYS beats; ARGV -, how long a node lives in ms: gives the living
-- 'leave'    KEYS beats; ARGV node
-- 'exit'     KEYS the node's channels; ARGV channel
-- 'some'     KEYS the node's channels; ARGV how many: gives some of them
-- 'forget'   KEYS beats; ARGV node

local what, key = ARGV[1], KEYS[1]

if what == 'list' then
  redis.call('PEXPIRE', key, ARGV[2])
  return redis.call('HGETALL', key)
end

if what == 'expire' then
  local gone = 0
  -- Compared, not matched: a member's id may hold anything.
  for _, field in ipairs(redis.call('HKEYS', key)) do
    if string.sub(field, 1, #ARGV[2]) == ARGV[2] then gone = gone + redis.call('HDEL', key, field) end
  end
  return gone
end

if what == 'exit' then return redis.call('SREM', key, ARGV[2]) end
if what == 'some' then return redis.call('SRANDMEMBER', key, ARGV[2]) end

-- The dead are kept until all that they said is removed. Score zero: it has left.
if what == 'leave' then return redis.call('ZADD', key, 'XX', '0', ARGV[2]) end
if what == 'forget' then return redis.call('ZREM', key, ARGV[2]) end

local function text(number) return string.format('%.0f', number) end
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local dead = text(now - ARGV[3])
-- The clock has been set back. A heartbeat later than now counts as one of now: the node lives on
-- if it sends more.
for _, node in ipairs(redis.call('ZRANGEBYSCORE', key, '(' .. text(now), '+inf')) do
  redis.call('ZADD', key, 'XX', text(now), node)
end
if what == 'living' then return redis.call('ZRANGEBYSCORE', key, '(' .. dead, '+inf') end

local last = redis.call('ZSCORE', key, ARGV[2])
local lived = last and tonumber(last) > tonumber(dead)
-- A dead node stays dead, because another node may be removing its entries.
if lived then redis.call('ZADD', key, 'XX', text(now), ARGV[2]) end
return {
  lived and 1 or 0,
  redis.call('ZRANGEBYSCORE', key, '(' .. dead, '+inf'),
  redis.call('ZRANGEBYSCORE', key, '-inf', dead, 'LIMIT', 0, 10),
  last and 1 or 0,
}
