-- Lets one request in or refuses it; the same arithmetic as `admit` in limits.py, in milliseconds.
-- KEYS: requests, tokens (until when the rate is used), open (leases by their end)
-- ARGV: requests per minute, tokens per minute, requests at once (0: no limit), lease id, lease time,
--       and the leases that were given back
local MINUTE, ROUNDING = 60000, 0.001
local time = redis.call('TIME')
local now = time[1] * 1000 + time[2] / 1000
local rpm, tpm, most = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])

local function ahead(key)
  return math.max(0, tonumber(redis.call('GET', key) or now) - now)
end

local function left(limit, used)
  return math.max(0, math.floor((MINUTE - used) * limit / MINUTE + ROUNDING))
end

for place = 6, #ARGV do
  redis.call('ZREM', KEYS[3], ARGV[place])
end

local refused, retry = '', 0
local requests, tokens = 0, 0
if tpm > 0 then
  tokens = ahead(KEYS[2])
  if tokens - MINUTE > -ROUNDING then
    refused, retry = 'tokens', tokens - MINUTE + MINUTE / tpm
  end
end
if rpm > 0 then
  requests = ahead(KEYS[1])
  local over = requests + MINUTE / rpm - MINUTE
  if over > ROUNDING and (refused == '' or over > retry) then
    refused, retry = 'requests', over
  end
end
if refused == '' and most > 0 then
  redis.call('ZREMRANGEBYSCORE', KEYS[3], '-inf', now)
  if redis.call('ZCARD', KEYS[3]) >= most then
    refused, retry = 'open', 1000
  end
end
if refused == '' then
  if rpm > 0 then
    requests = requests + MINUTE / rpm
    redis.call('SET', KEYS[1], string.format('%.3f', now + requests), 'PX', math.ceil(requests))
  end
  if most > 0 then
    redis.call('ZADD', KEYS[3], now + tonumber(ARGV[5]), ARGV[4])
    redis.call('PEXPIRE', KEYS[3], ARGV[5])
  end
end
return {refused, math.ceil(retry), left(rpm, requests), math.ceil(requests),
  left(tpm, tokens), math.ceil(tokens)}
