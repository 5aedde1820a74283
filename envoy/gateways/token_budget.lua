-- Asks the router where a request belongs, and sets txn.pool and txn.budget to its answer.
-- For haproxy.cfg; HAProxy 2.6 or later.
--
-- Without an answer, a slow one, or with a body that does not fit HAProxy's buffer, txn.pool
-- stays unset: the default backend, the long pool.

local ROUTER = "http://extproc:9090"
local TIMEOUT_MS = 1000

core.register_action("token_budget", { "http-req" }, function(txn)
  -- Of a body above tune.bufsize only the beginning is here: long, unread.
  local here, whole = txn.f:req_body_len(), txn.f:req_body_size()
  if here == 0 or here < whole then
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
