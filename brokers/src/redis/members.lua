#!lua
-- What a node says about its members in one channel, and the word of it to those who watch.
--
-- KEYS  members ARGV  pub/sub channel, how it is published, how long the members are remembered in
-- ms, the message, and for each entry: field, '1' if
--       it is set or '0' if it is cleared, value
-- gives how many more fields there are than before

local more = 0
for at = 5, #ARGV, 3 do
  if ARGV[at + 1] == '1' then
    more = more + redis.call('HSET', KEYS[1], ARGV[at], ARGV[at + 2])
  else
    more = more - redis.call('HDEL', KEYS[1], ARGV[at])
  end
end
redis.call('PEXPIRE', KEYS[1], ARGV[3])
redis.call(ARGV[2], ARGV[1], ARGV[4])
return more
