-- Gives an event its place: one step, or nothing.
--
-- Without a flag in its first line (see redis.rs) this counts as a write from the start, so a
-- replica, a full server and one that has too few replicas refuse it before anything has happened.
--
-- KEYS  head, stream, epoch, epoch, floor [, idempotency key]; while a slot of a cluster moves, the
-- channel's own alone:
--       head, stream [, idempotency key]
-- ARGV  the event, its weight, pub/sub channel, '1' if the channel ends; of history: events, age in
-- µs, bytes;
--       in ms: how long the head lives, how long the stream lives, how long the key is recognised; then PUBLISH, or SPUBLISH on a cluster;
--       the highest position that the node knows;
--       the payload's fingerprint; the end to append right behind the event ('': none) and its weight
-- gives {'known', position}, {'other'}: known with another payload, {'ended'} or {'new', position};
--       {'old', position}: known to version 0.1, which stored no fingerprint and appended an end by itself;
--       {}: the channel's own keys are not enough, and nothing has been done

local all = #KEYS > 3
local idempotency_key = KEYS[all and 6 or 3]
if idempotency_key then
  local first = redis.call('GET', idempotency_key)
  if first then
    -- A later version may have more to say behind another colon.
    local position, fingerprint = string.match(first .. ':', '^(%d+):(%x+):')
    if not position then return {'old', first} end
    if fingerprint ~= ARGV[13] then return {'other'} end
    return {'known', position}
  end
end

local head = redis.call('HMGET', KEYS[1], 'position', 'ended', 'written', 'trimmed', 'floor',
  'events', 'age', 'bytes', 'since', 'upto')
local previous, ended, written, trimmed = head[1], head[2], tonumber(head[3] or 0), tonumber(head[4] or 0)
-- Above all that any node has told of, whatever the clock says: a server may come back behind what
-- it gave.
local known = math.max(tonumber(ARGV[12]), tonumber(head[5] or 0))
if ended then return {'ended'} end

if not previous then
  if not all then return {} end
  -- A stream without its head (evicted, say): no node can tell what else is gone, so no epoch
  -- proves anything any more.
  if redis.call('UNLINK', KEYS[2]) == 1 then redis.call('UNLINK', KEYS[3], KEYS[4]) end
  previous = epoch(KEYS[3], KEYS[4], true)
  known = math.max(known, tonumber(redis.call('GET', KEYS[5]) or 0))
  redis.call('HSET', KEYS[1], 'birth', previous)
end

local events, age, bytes = tonumber(ARGV[5]), tonumber(ARGV[6]), tonumber(ARGV[7])
-- Nodes may have different rules, while a new configuration is rolled out for instance. The largest
-- limits that any of them had are kept; a node with smaller ones shows less. Nothing makes them
-- smaller but an operator who removes them.
local largest = {events = tonumber(head[6] or 0), age = tonumber(head[7] or 0), bytes = tonumber(head[8] or 0)}
for what, own in pairs({events = events, age = age, bytes = bytes}) do
  if own > largest[what] then
    largest[what] = own
    redis.call('HSET', KEYS[1], what, text(own))
  end
end
events, age, bytes = largest.events, largest.age, largest.bytes
local stream_lives = math.max(tonumber(ARGV[9]), math.ceil(age / 1000))
local head_lives = math.max(tonumber(ARGV[8]), 2 * stream_lives)

local appended = {{ARGV[1], tonumber(ARGV[2])}}
if ARGV[14] ~= '' then appended[2] = {ARGV[14], tonumber(ARGV[15])} end
local position
local told = {}
for n, append in ipairs(appended) do
  local event, weight = append[1], append[2]
  position = text(math.max(tonumber(previous) + 1, known + 1, now))
  -- What was written to this channel in all, in bytes. Each entry names the sum before it, so what
  -- the stream holds is a difference, however the server trims.
  local total = written + weight
  if events > 0 and age > 0 then
    local entry = {'p', previous, 'w', text(written), 'e', event}
    -- The clock has been set back: the position does not say any more when this was written.
    if tonumber(position) > now + 1000000 then entry[7], entry[8] = 't', text(now) end
    redis.call('XADD', KEYS[2], 'MAXLEN', '=', text(events), position .. '-0', unpack(entry))
    -- Half of it goes at once, so that it is seldom. `trimmed` may be behind what count and age
    -- have trimmed: look before trimming.
    if total - trimmed > 2 * bytes then
      trimmed = tonumber(redis.call('XRANGE', KEYS[2], '-', '+', 'COUNT', 1)[1][2][4])
      while total - trimmed > 2 * bytes do
        local oldest = redis.call('XRANGE', KEYS[2], '-', '+', 'COUNT', 16)
        local first
        for _, entry in ipairs(oldest) do
          first = entry
          if total - tonumber(entry[2][4]) <= bytes then break end
        end
        trimmed = tonumber(first[2][4])
        if first[1] == position .. '-0' and weight > bytes then
          redis.call('UNLINK', KEYS[2])
          trimmed = total
        else
          redis.call('XTRIM', KEYS[2], 'MINID', '=', first[1])
        end
      end
    end
  end
  told[n] = position .. ':' .. previous .. ':' .. event
  previous, written = position, total
end
if events > 0 and age > 0 then
  expire(KEYS[1], KEYS[2], tonumber(position), now, age, head[9], head[10])
  redis.call('PEXPIRE', KEYS[2], text(stream_lives))
else
  -- What an earlier rule kept must not look like the newest.
  redis.call('UNLINK', KEYS[2])
end

redis.call('HSET', KEYS[1], 'position', position, 'written', text(written), 'trimmed', text(trimmed))
if ARGV[4] == '1' then redis.call('HSET', KEYS[1], 'ended', '1') end
redis.call('PEXPIRE', KEYS[1], text(head_lives))
-- Version 0.1 takes a value with a fingerprint for none of its own, and answers that the broker is
-- unavailable.
if idempotency_key then redis.call('SET', idempotency_key, position .. ':' .. ARGV[13], 'PX', ARGV[10]) end
for _, event in ipairs(told) do redis.call(ARGV[11], ARGV[3], event) end
return {'new', position}
