-- Gets a request's pool and budget from the router and sets txn.pool and txn.budget.
-- For haproxy.cfg; HAProxy 2.6 or later.
--
-- If the answer is late or missing, or the body exceeds HAProxy's buffer, txn.pool stays
-- unset, and the request takes the default backend, the long pool.

local ROUTER = "http://extproc:9090"
local TIMEOUT_MS = 1000

core.register_action("token_budget", { "http-req" }, function(txn)
  -- HAProxy has only the start of a body above tune.bufsize; leave it to the long pool.
  local buffered, total = txn.f:req_body_len(), txn.f:req_body_size()
  if buffered == 0 or buffered < total then
    return
  end
  local hint = txn.sf:req_hdr("x-llm-category"):gsub("[^%w_-]", "")
  local answer = core.httpclient():post({
    url = ROUTER .. "/decide?path=" .. txn.sf:path() .. "&hint=" .. hint,
    headers = { ["content-type"] = { "application/json" } },
    body = txn.f:req_body(),
    timeout = TIMEOUT_MS,
  })
  if answer.status == 200 then
    txn:set_var("txn.pool", answer.headers["x-llm-pool"][0])
    txn:set_var("txn.budget", answer.headers["x-llm-budget"][0])
  end
end)
