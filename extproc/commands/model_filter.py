"""The Lua filter that names a request's model if the router did not.

It reads the name from the body and clears the route cache, so that the model's own
routes match. The router did not name the model if it is down or did not read the body.
"""

from __future__ import annotations

import re

from extproc.commands.gateway_fleet import (
    BUFFER_LIMIT_BYTES,
    MODEL_HEADER,
    UNNAMED,
    UNREADABLE,
    Fleet,
    Json,
)
from extproc.routing.models import is_pattern

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


def model_filter(name: str, fleet: Fleet, undecided: str) -> Json:
    """Return the HTTP filter that sets a request's model if the router did not.

    Args:
        name: name of the filter.
        fleet: the fleet.
        undecided: as of ``model_source``.
    """
    return {
        "name": name,
        "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.filters.http.lua.v3.Lua",
            "default_source_code": {"inline_string": model_source(fleet, undecided)},
        },
    }


def model_source(fleet: Fleet, undecided: str) -> str:
    """Return the filter's Lua source.

    Args:
        fleet: the fleet.
        undecided: a glob pattern for the name of the last route, which checks no
            header. The filter does not change requests on other routes.
    """
    names = [(name, model.name) for model in fleet.models for name in model.names]
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
        "max_bytes": BUFFER_LIMIT_BYTES,
        "undecided": _quoted(_lua_pattern(undecided)),
        "model_header": MODEL_HEADER,
        "unreadable": UNREADABLE,
        "unnamed": UNNAMED,
    }


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
