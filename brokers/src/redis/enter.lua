#!lua
-- Writes a node's lease, or in which channel it has members. It adds keys, so a full server
-- refuses it.
--
-- ARGV  what; then
-- 'register' KEYS beats; ARGV node
-- 'enter'    KEYS the node's channels; ARGV channel, how long they are remembered in ms

local what, key = ARGV[1], KEYS[1]

if what == 'register' then
  local time = redis.call('TIME')
  -- NX: a dead node stays dead, because another node may be removing its entries.
  return redis.call('ZADD', key, 'NX', string.format('%.0f', time[1] * 1000 + math.floor(time[2] / 1000)), ARGV[2])
end

redis.call('SADD', key, ARGV[2])
return redis.call('PEXPIRE', key, ARGV[3])
