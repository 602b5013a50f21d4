-- Makes an epoch, if there is none that is young.
--
-- KEYS  epoch, epoch

return epoch(KEYS[1], KEYS[2], true)
