-- Lets the head of a channel live on that is followed and quiet. One that is followed for longer
-- than an epoch is given out and has had no event gets a head here, at the position from which its
-- listeners go on.
--
-- KEYS  head, epoch, epoch ARGV  the position at which the node stands ('': it has not followed for
-- long), how long the head lives in ms

if redis.call('HMGET', KEYS[1], 'position')[1] then return redis.call('PEXPIRE', KEYS[1], ARGV[2], 'GT') end
if ARGV[1] == '' or not honours(KEYS[2], KEYS[3], ARGV[1]) then return 0 end
redis.call('HSET', KEYS[1], 'position', ARGV[1], 'birth', ARGV[1])
return redis.call('PEXPIRE', KEYS[1], ARGV[2])
