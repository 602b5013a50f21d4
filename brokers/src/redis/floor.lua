-- A client or a node holds a position that is above the clock, of a channel of which nothing is
-- left. The first event of a channel without events lies above it from now on: one key for all, so
-- that reading stores nothing for each name.
--
-- KEYS  floor
-- ARGV  that position, the highest that the node believes, how long the floor lives in ms

if tonumber(ARGV[1]) > now and tonumber(ARGV[2]) > tonumber(redis.call('GET', KEYS[1]) or 0) then
  redis.call('SET', KEYS[1], ARGV[2], 'PX', ARGV[3])
end
return 1
