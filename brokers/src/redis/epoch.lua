-- The epoch: the first position of every channel without events. Two keys hold the newest epoch and
-- the one before.
--
-- An epoch lives 28 days, and a head at least 30 days from its newest event. So while an epoch
-- lives, no event that is younger has been forgotten: a channel without a head had none since that
-- epoch. What takes all keys takes the epochs, too.

-- Positions are near 2^51: exact as doubles, but tostring() would round them.
local function text(number) return string.format('%.0f', number) end

local LIVES, GIVEN = 28 * 86400000, 14 * 86400000

local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]

-- How long the epoch in this key lives still, in ms. One that lives too long is from a time when
-- the clock ran ahead: it might outlive heads, so it counts as none.
local function left(key)
  local left = redis.call('PTTL', key)
  return left > 0 and left <= LIVES + 3600000 and left or nil
end

-- The epoch to give out, if there is one, and whether it is young. With `makes`, an old one is
-- followed by a new one.
local function epoch(one, other, makes)
  local lives = {[one] = left(one), [other] = left(other)}
  local newest = (lives[other] or 0) > (lives[one] or 0) and other or one
  if lives[newest] and lives[newest] >= LIVES - GIVEN then return redis.call('GET', newest), true end
  local free = not lives[one] and one or not lives[other] and other
  if makes and free then
    redis.call('SET', free, text(now), 'PX', text(LIVES))
    return text(now), true
  end
  return lives[newest] and redis.call('GET', newest), false
end

-- Whether the position is an epoch that lives.
local function honours(one, other, position)
  return left(one) and redis.call('GET', one) == position or left(other) and redis.call('GET', other) == position
end

