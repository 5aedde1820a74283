"""The routes and clusters that Envoy needs for a fleet of models.

Each request goes to its model's largest pool unless the router chooses another pool. If
the router sets no ``x-llm-model``, the next filter, a Lua script, reads the model's
name from the body and clears the route cache. A request for an unknown model is
rejected with vLLM's error.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from extproc.routing.models import is_pattern

Json = dict[str, Any]

LUA = "type.googleapis.com/envoy.extensions.filters.http.lua.v3.Lua"
ADAPTERS = ".*(/|%2[fF])(un)?load_lora_adapter(/|%2[fF])*"
"""RE2 expression for the paths below /v1 that make vLLM load or unload adapters."""
FORBIDDEN = (
    '{"error": {"message": "not open to clients", "type": "forbidden", "code": 403}}'
)
"""The answer to requests for the paths that make vLLM load or unload adapters."""

MODEL_HEADER = "x-llm-model"
POOL_HEADER = "x-llm-pool"
NO_MODEL = "no_model"
"""Name of two objects: a cluster without endpoints, and the last route, which leads to
this cluster."""
DEFAULT = "default"
"""Name of the last route, if any model serves requests for unknown models."""
UNREADABLE = "-"
"""Value of ``x-llm-model`` if Envoy cannot read the request's body, because it is
encoded or too long."""
UNNAMED = "."
"""Value of ``x-llm-model`` if the body has no model or is not a JSON object."""

_LUA = """\
-- The base model of each requested name, for requests without a model from the
-- router: it is down, or did not read the body.
local bases = {
%(bases)s}
local patterns = {
%(patterns)s}
-- Largest request that Envoy buffers (request_body_buffer_limit); above it: 413.
local max_bytes = %(max_bytes)d
-- Name of the route that requests take until their model is known.
local undecided = %(undecided)s

local function plain(text)
  if not text:find("\\\\", 1, true) then return text end
  if text:find("\\\\[^\\"\\\\/]") then return nil end
  return (text:gsub("\\\\(.)", "%%1"))
end

-- The value of the last top-level key "model" of an object, as JSON parsers return it.
local function model_of(json)
  local depth, at, found = 0, 1, nil
  while true do
    local here = json:find('["{}%%[%%]]', at)
    if not here then break end
    local mark = json:sub(here, here)
    at = here + 1
    if mark == "{" or mark == "[" then
      depth = depth + 1
    elseif mark ~= '"' then
      depth = depth - 1
    else
      local stop, escapes = here, 0
      repeat  -- a quote after an odd number of backslashes is escaped
        stop = json:find('"', stop + 1, true)
        if not stop then return nil end
        escapes = 0
        while json:byte(stop - 1 - escapes) == 92 do escapes = escapes + 1 end
      until escapes %% 2 == 0
      at = stop + 1
      if depth == 1 then
        local value = json:match("^%%s*:%%s*()", at)
        if value then
          local key = json:sub(here + 1, stop - 1)
          if key:find("\\\\u", 1, true) then return nil end
          if key == "model" then
            local text = json:match('^"([^"]*)"', value)
            found = text and plain(text)
          end
        end
      end
    end
  end
  return depth == 0 and found or nil
end

local function base_of(name)
  if bases[name] then return bases[name] end
  for _, pattern in ipairs(patterns) do
    if name:find(pattern[1]) then return pattern[2] end
  end
  return nil
end

function envoy_on_request(handle)
  if not handle:streamInfo():routeName():find(undecided) then return end
  local headers = handle:headers()
  if headers:get("%(model_header)s") then
    -- If more of the body arrives after the router's reply, Envoy may keep the old
    -- route (with request_body_mode BUFFERED_PARTIAL).
    handle:clearRouteCache()
    return
  end
  local name = "%(unreadable)s"
  local length = tonumber(headers:get("content-length") or "0")
  if headers:get(":method") ~= "POST" then
    -- A stored response: the router determines its pool.
    local kept = headers:get(":path"):find("/responses/", 1, true)
    name = kept and name or "%(unnamed)s"
  elseif not headers:get("content-encoding") and length and length <= max_bytes then
    local body = handle:body()
    local text = body and body:getBytes(0, body:length()) or ""
    -- A form with a file, as for /v1/audio/transcriptions.
    local field = '; name="model"\\r\\n\\r\\n([^\\r\\n]+)\\r\\n'
    local named = model_of(text) or text:match(field)
    name = named and (base_of(named) or named) or "%(unnamed)s"
  end
  -- Get the headers again: body() yields, which invalidates earlier handles.
  handle:headers():replace("%(model_header)s", name)
  handle:clearRouteCache()
end
"""


BUFFER_LIMIT_BYTES = 32 << 20
"""Maximum bytes of one request that Envoy buffers, as in envoy/envoy.yaml."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """An answer to requests whose model is not in the fleet."""

    name: str
    model: str | None
    """Value of ``x-llm-model`` in the refused requests; None means any value."""
    message: str
    type: str
    status: int
    param: str | None = None

    @property
    def body(self) -> str:
        """Return the body of the answer, in the form of vLLM's errors."""
        param = {"param": self.param} if self.param else {}
        error = {"message": self.message, "type": self.type, **param}
        return json.dumps({"error": error | {"code": self.status}})


REFUSALS = (
    Refusal(
        "unreadable",
        UNREADABLE,
        "The model could not be read from the request. Please try again.",
        "ServiceUnavailableError",
        503,
    ),
    Refusal(
        "no_model_named",
        UNNAMED,
        "The request names no model.",
        "BadRequestError",
        400,
        "model",
    ),
    Refusal(
        "unknown_model",
        None,
        "The model does not exist.",
        "NotFoundError",
        404,
        "model",
    ),
)
"""The refusals in order of precedence; the last one matches every name."""


@dataclass(frozen=True, slots=True)
class Model:
    """A base model of a fleet."""

    name: str
    pools: Sequence[str]
    """Names of the model's pools; the pool with the largest window is last."""
    adapters: Sequence[str] = ()
    """Other names that clients use for the model, or glob patterns of such names."""


def read_fleet(text: str) -> list[Model]:
    """Return a configuration's models: one unnamed model if it has only ``pools``.

    Args:
        text: a valid configuration file, in YAML.
    """
    document = yaml.safe_load(text) or {}
    models = document.get("models") or {"": document}
    return [
        Model(
            name,
            [pool["name"] for pool in model["pools"]],
            model.get("adapters", ()),
        )
        for name, model in models.items()
    ]


def model_filter(models: Sequence[Model], max_bytes: int, undecided: str) -> str:
    """Return the Lua source that sets a request's model if the router did not.

    Args:
        models: the fleet.
        max_bytes: maximum size of a request that Envoy buffers.
        undecided: a glob pattern for the name of the last route, which checks no
            header. The filter does not change requests on other routes.
    """
    names = [(name, model.name) for model in models for name in _names(model)]
    exact = [each for each in names if not is_pattern(each[0])]
    patterns = [each for each in names if is_pattern(each[0])]
    return _LUA % {
        "bases": "".join(
            f"  [{_quoted(name)}] = {_quoted(base)},\n" for name, base in exact
        ),
        "patterns": "".join(
            f"  {{{_quoted(_lua_pattern(name))}, {_quoted(base)}}},\n"
            for name, base in patterns
        ),
        "max_bytes": max_bytes,
        "undecided": _quoted(_lua_pattern(undecided)),
        "model_header": MODEL_HEADER,
        "unreadable": UNREADABLE,
        "unnamed": UNNAMED,
    }


def last_route(default: str | None) -> str:
    """Return the name of the last route, which checks no header."""
    return NO_MODEL if default is None else DEFAULT


def routes(models: Sequence[Model], default: str | None = None) -> Iterator[Json]:
    """Yield the routes of a fleet, in order.

    Args:
        models: the fleet.
        default: the model that serves requests for unknown models; None rejects them
            with vLLM's error.
    """
    for model in models:
        largest = model.pools[-1]
        for pool in model.pools[:-1]:
            yield _small_pool_route(pool, largest)
        if model.name:
            header = _has(MODEL_HEADER, model.name)
            yield _route(largest, _largest_pool(largest), header)
    if default is not None:
        (largest,) = (model.pools[-1] for model in models if model.name == default)
        yield _route(DEFAULT, _largest_pool(largest))
        return
    for refusal in REFUSALS:
        yield _refusal(refusal)
    # This route matches every request whose model is not yet known. It must not be a
    # direct response, because Envoy buffers no body for direct responses, whatever
    # ``request_body_buffer_limit`` is.
    yield _route(NO_MODEL, {"cluster": NO_MODEL, "timeout": "0s"})


def models_list(models: Sequence[Model]) -> str:
    """Return the answer to ``GET /v1/models`` for the whole fleet."""
    listed = [
        {"id": name, "object": "model", "owned_by": "vllm", "root": model.name}
        for model in models
        for name in _names(model)
        if not is_pattern(name)
    ]
    return json.dumps({"object": "list", "data": listed})


def models_answer(models: Sequence[Model]) -> Json:
    """Return the route that answers ``GET /v1/models`` for the whole fleet."""
    body = {"inline_string": models_list(models)}
    return {
        "name": "models",
        "match": {
            "path": "/v1/models",
            "headers": [{"name": ":method", "string_match": {"exact": "GET"}}],
        },
        "direct_response": {"status": 200, "body": body},
        "response_headers_to_add": [_json_type()],
    }


def health_answer() -> Json:
    """Return the route for the gateway's own health check."""
    return {
        "name": "health",
        "match": {"safe_regex": {"regex": "/(health|ping)"}},
        "direct_response": {"status": 200},
    }


def set_headers(models: Sequence[Model]) -> list[str]:
    """Return the headers that only the router and its filters may set."""
    headers = [POOL_HEADER, "x-llm-budget", "x-llm-overflow", "x-llm-retry-cut"]
    return headers + ([MODEL_HEADER] if any(model.name for model in models) else [])


def cluster(pool: str) -> str:
    """Return the name of a pool's cluster."""
    return f"vllm_{pool}"


_RETRY_ON = "connect-failure,refused-stream,reset-before-request"


def _small_pool_route(pool: str, largest: str) -> Json:
    """Return the route to a pool; overflows are retried on the largest pool."""
    groups = [
        {"name": name, "clusters": [{"cluster_name": cluster(name), "weight": 1}]}
        for name in (pool, largest)
    ]
    package = "envoy.extensions.router.cluster_specifiers.priority_group.v3"
    kind = f"type.googleapis.com/{package}.PriorityGroupClusterSpecifier"
    action: Json = {
        "timeout": "0s",
        "inline_cluster_specifier_plugin": {
            "extension": {
                "name": "envoy.router.cluster_specifier_plugin.priority_group",
                "typed_config": {
                    "@type": kind,
                    "priority_groups": groups,
                },
            }
        },
        "retry_policy": {
            "retry_on": f"retriable-headers,{_RETRY_ON}",
            "retriable_headers": [
                {"name": "x-llm-overflow", "string_match": {"exact": "1"}}
            ],
            "num_retries": 1,
            "refresh_cluster_on_retry": True,
            "retry_back_off": {"base_interval": "0.005s", "max_interval": "0.02s"},
        },
    }
    return _route(pool, action, _has(POOL_HEADER, pool))


def _largest_pool(pool: str) -> Json:
    return {
        "cluster": cluster(pool),
        "timeout": "0s",
        "retry_policy": {"retry_on": _RETRY_ON, "num_retries": 1},
    }


def _route(name: str, action: Json, header: Json | None = None) -> Json:
    return {"name": name, "match": _match(header), "route": action}


def _refusal(refusal: Refusal) -> Json:
    header: Json = (
        {"name": MODEL_HEADER, "present_match": True}
        if refusal.model is None
        else _has(MODEL_HEADER, refusal.model)
    )
    body = {"inline_string": refusal.body}
    return {
        "name": refusal.name,
        "match": _match(header),
        "direct_response": {"status": refusal.status, "body": body},
        "response_headers_to_add": [_json_type()],
    }


def _match(header: Json | None) -> Json:
    return {"prefix": "/"} | ({} if header is None else {"headers": [header]})


def _has(name: str, value: str) -> Json:
    return {"name": name, "string_match": {"exact": value}}


def _json_type() -> Mapping[str, object]:
    return {
        "header": {"key": "content-type", "value": "application/json"},
        "append_action": "OVERWRITE_IF_EXISTS_OR_ADD",
    }


def _names(model: Model) -> Iterator[str]:
    yield model.name
    yield from model.adapters


_GLOB_PARTS = re.compile(r"\[(!?)(\]?[^\]]*)\]|(.)", re.DOTALL)
"""One part of a glob: a set of characters, or one character."""


def _lua_pattern(glob: str) -> str:
    """Return a Lua pattern that matches the same texts as the glob in ``fnmatch``."""
    return f"^{''.join(map(_lua_part, _GLOB_PARTS.finditer(glob)))}$"


def _lua_part(part: re.Match[str]) -> str:
    negated, members, character = part.groups()
    if character is None:
        # The dash of a range must stay unescaped.
        escaped = re.sub(r"[^\w\s-]", r"%\g<0>", members, flags=re.ASCII)
        return f"[{'^' if negated else ''}{escaped}]"
    marks = {"*": ".*", "?": "."}
    plain = character.isalnum() or not character.isascii()
    return marks.get(character) or (character if plain else f"%{character}")


def _quoted(text: str) -> str:
    """Return a Lua string literal of the text's UTF-8 bytes."""
    plain = {byte for byte in range(32, 127) if chr(byte) not in '"\\'}
    escaped = (chr(b) if b in plain else f"\\{b:03d}" for b in text.encode())
    return f'"{"".join(escaped)}"'
