-- Requests for wrk, hardly ever the same twice: users and what is asked for them (the candidates of
-- a ranking, say) take turns, and their numbers have no common factor, so that a pair returns only
-- after all others.
-- Arguments: file of users, file of lists, the field that holds a list, what stands before and after
-- a request, first pair.

local users, lists, head, middle, closing, place

local function lines(path)
  local found = {}
  for line in io.lines(path) do
    found[#found + 1] = line
  end
  return found
end

function init(args)
  users, lists = lines(args[1]), lines(args[2])
  local opening = args[4] .. '{"user":"'
  middle, closing = '","' .. args[3] .. '":', "}" .. args[5]
  place = tonumber(args[6])
  -- Users have ids of one length, and so have items: all bodies are equally long.
  local length = #opening + #users[1] + #middle + #lists[1] + #closing
  head = "POST " .. wrk.path .. " HTTP/1.1\r\nHost: " .. wrk.host .. ":" .. wrk.port
    .. "\r\nContent-Type: application/json\r\nContent-Length: " .. length .. "\r\n\r\n" .. opening
end

function request()
  place = place + 1
  return head .. users[place % #users + 1] .. middle .. lists[place % #lists + 1] .. closing
end

function done(summary, latency)
  local errors = summary.errors
  local failed = errors.connect + errors.read + errors.write + errors.status + errors.timeout
  local form = '{"answered": %d, "microseconds": %d, "failed": %d, "p50_ms": %f, "p95_ms": %f, "p99_ms": %f}'
  print("RESULT " .. string.format(
    form, summary.requests - errors.status, summary.duration, failed,
    latency:percentile(50) / 1000, latency:percentile(95) / 1000, latency:percentile(99) / 1000
  ))
end
