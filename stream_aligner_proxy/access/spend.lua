-- KEYS: tokens (until when the rate is used). ARGV: milliseconds of the rate that were used
local time = redis.call('TIME')
local now = time[1] * 1000 + time[2] / 1000
local used = math.max(now, tonumber(redis.call('GET', KEYS[1]) or now)) + tonumber(ARGV[1])
redis.call('SET', KEYS[1], string.format('%.3f', used), 'PX', math.max(1, math.ceil(used - now)))
return 1
