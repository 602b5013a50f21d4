-- Removes what is older than `age`. A position is the time at which its event was written, to the
-- second, unless the clock was behind the newest event then: such an entry has its time beside it.
-- What was written before a node noticed that the clock had been set back (`since`), and by its
-- position later (but not after `upto`), counts as written when it was noticed.
local function expire(head, stream, newest, now, age, since, upto)
  if newest <= now + 1000000 and not since then
    redis.call('XTRIM', stream, 'MINID', '=', text(math.max(now - age, 0)))
    return
  end
  since, upto = tonumber(since or now), tonumber(upto or newest)
  if now <= since then
    since = now
    redis.call('HSET', head, 'since', text(since), 'upto', text(upto))
  end
  local next, kept = '-', nil
  repeat
    local oldest = redis.call('XRANGE', stream, next, '+', 'COUNT', 16)
    for _, entry in ipairs(oldest) do
      local position = tonumber(string.match(entry[1], '^%d+'))
      local time = tonumber(entry[2][8] or position)
      if time > now or (not entry[2][8] and time > since and time <= upto) then time = since end
      if time >= now - age then
        kept = entry
        break
      end
      next = text(position + 1)
    end
  until kept or #oldest == 0
  if next ~= '-' then redis.call('XTRIM', stream, 'MINID', '=', next) end
  -- Positions say the time again, and what they did not say it of is gone.
  local over = not kept or (not kept[2][8] and tonumber(string.match(kept[1], '^%d+')) > upto)
  if newest <= now + 1000000 and over then redis.call('HDEL', head, 'since', 'upto') end
end

