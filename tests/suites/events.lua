-- wrk: requests that were made before, each once, from the file EVENTS: eight digits of length, then the request's bytes.
local file

function init()
  file = assert(io.open(os.getenv("EVENTS"), "rb"))
end

function request()
  local length = file:read(8)
  if not length then
    wrk.thread:stop()
    return wrk.format("GET", "/")
  end
  return file:read(tonumber(length))
end
