"""Reads logs of requests with their token counts, as input of ``replay``.

A file may be gzipped. Each line is a JSON object. The request body is read from the
first of the following fields that is present:

- ``body_base64``: the bytes as sent, to which the content-encoding header applies;
- ``body``: the JSON body as text or as an object, also in OpenAI's batch lines;
- ``request`` or ``proxy_server_request`` (LiteLLM): an object with ``body``, or the
  body itself;
- ``input`` of an export of generations with counts (Langfuse), with
  ``modelParameters``;
- the fields of a body themselves (``messages``, ``prompt``, ``input``).

The token counts are in ``usage`` (of the line, of its ``response`` or of the response's
``body``), in ``usageDetails``, or next to the body.
"""

from __future__ import annotations

import base64
import binascii
import gzip
import sys
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from io import BufferedReader
from pathlib import Path
from typing import Any, cast
from urllib.parse import urlsplit

import msgspec

from extproc.exchange.limits import read_integer
from extproc.exchange.openai import (
    COMPLETIONS,
    DEFAULT_PATH,
    EMBEDDINGS,
    MESSAGES,
    RESPONSES,
)
from extproc.json_object import JsonObject
from extproc.routing.token_counts import read_token_counts

BOM = b"\xef\xbb\xbf"
_GZIP = b"\x1f\x8b"
_MAX_TOKENS = 1 << 31


class LogError(Exception):
    """An invalid log line; the message has line number, field and expected form."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One line of a log."""

    path: str
    body: bytes
    encoding: str
    """Value of ``content-encoding`` for the body."""
    hint: str | None
    prompt_tokens: int
    completion_tokens: int


def read_log(name: str, hint_header: str) -> Iterator[Entry]:
    """Read a log's entries.

    Args:
        name: a file name, or ``-`` for standard input.
        hint_header: name of the header that contains a category.

    Raises:
        LogError: a line is invalid, or there are no lines.
        OSError: the file cannot be read.
    """
    if name == "-":
        yield from _read_stream(cast(BufferedReader, sys.stdin.buffer), hint_header)
        return
    with Path(name).open("rb") as stream:
        yield from _read_stream(stream, hint_header)


def _read_stream(stream: BufferedReader, hint_header: str) -> Iterator[Entry]:
    """Parse a stream, gzipped or not, into entries."""
    if not stream.peek(2).startswith(_GZIP):
        yield from read_lines(stream, hint_header)
        return
    try:
        with gzip.GzipFile(fileobj=stream) as lines:
            yield from read_lines(lines, hint_header)
    except (EOFError, zlib.error, gzip.BadGzipFile):
        raise LogError("damaged gzip; expected a whole file") from None


def read_lines(lines: Iterable[bytes], hint_header: str) -> Iterator[Entry]:
    """Parse lines into entries, ignoring a byte order mark before the first line.

    Raises:
        LogError: see ``read_log``.
    """
    empty = True
    for number, line in enumerate(lines, start=1):
        text = line.removeprefix(BOM) if number == 1 else line
        if not text.strip():
            continue
        empty = False
        try:
            yield _entry(_record(text), hint_header)
        except _FieldError as error:
            raise LogError(f"line {number}: {error}") from None
    if empty:
        raise LogError("empty; expected one JSON object a line, one for each request")


class _FieldError(ValueError):
    """An invalid field; the message contains no text of the body."""


def _record(line: bytes) -> JsonObject:
    try:
        record = msgspec.json.decode(line)
    except (ValueError, RecursionError):
        problem = "not JSON in UTF-8; expected one object a line"
        raise _FieldError(problem) from None
    if type(record) is not dict:
        raise _FieldError(f"{_kind(record)}; expected one object a line")
    return record


def _entry(record: JsonObject, hint_header: str) -> Entry:
    request = _request_of(record)
    headers = _headers(record, request)
    body, encoding, fields = _body(record, request, headers)
    prompt_tokens, completion_tokens = _counts(record)
    return Entry(
        _path(record, request, fields),
        body,
        encoding,
        _header(headers, hint_header),
        prompt_tokens,
        completion_tokens,
    )


def _request_of(record: JsonObject) -> JsonObject:
    """Return the object in which a gateway logs the client's request, or {} if none."""
    for name in ("proxy_server_request", "request"):
        value = record.get(name)
        if type(value) is str and value.lstrip()[:1] == "{":
            value = _decoded(value)
        if type(value) is dict and value:
            return value
    return {}


def _decoded(text: str) -> Any:
    try:
        return msgspec.json.decode(text)
    except (ValueError, RecursionError):
        return None


def _headers(record: JsonObject, request: JsonObject) -> JsonObject:
    headers = record.get("headers") or request.get("headers") or {}
    if type(headers) is not dict:
        raise _FieldError(f"headers: {_kind(headers)}; expected an object of texts")
    return {name.lower(): value for name, value in headers.items()}


def _header(headers: JsonObject, name: str) -> str | None:
    value = headers.get(name)
    if value is not None and type(value) is not str:
        raise _FieldError(f"headers.{name}: {_kind(value)}; expected a text")
    return value


def _body(
    record: JsonObject, request: JsonObject, headers: JsonObject
) -> tuple[bytes, str, JsonObject]:
    """Return the body, its encoding, and its fields if they are parsed already."""
    if (encoded := record.get("body_base64")) is not None:
        return _from_base64(encoded), _header(headers, "content-encoding") or "", {}
    value = record.get("body", request.get("body"))
    if value is None:
        value = _fields_of(request) or _fields_of(record) or _generation(record)
    if type(value) is str:
        return value.encode(errors="replace"), "", {}
    if type(value) is dict and value:
        return msgspec.json.encode(value), "", value
    found = "missing" if value is None else _kind(value)
    raise _FieldError(f"body: {found}; expected a request's JSON, as text or an object")


def _from_base64(encoded: Any) -> bytes:
    try:
        return base64.b64decode(encoded, validate=True)
    except (TypeError, ValueError, binascii.Error):
        problem = "body_base64: not base64; expected the body's bytes"
        raise _FieldError(problem) from None


def _fields_of(record: JsonObject) -> JsonObject | None:
    """Return the fields of a body that are stored in the record itself."""
    if type(record.get("messages")) is list or record.get("prompt") is not None:
        names = ["messages", "prompt", "system", "tools", "model"]
    elif record.get("input") is not None and not _is_generation(record):
        names = ["input", "instructions", "tools", "model"]
    else:
        return None
    present = {name: record[name] for name in names if record.get(name) is not None}
    return {**_parameters(record), **present}


def _parameters(record: JsonObject) -> JsonObject:
    for name in ("model_parameters", "modelParameters", "optional_params"):
        value = record.get(name)
        value = _decoded(value) if type(value) is str else value
        if type(value) is dict:
            return value
    names = ("max_tokens", "max_completion_tokens", "max_output_tokens", "stream", "n")
    return {name: record[name] for name in names if record.get(name) is not None}


def _is_generation(record: JsonObject) -> bool:
    return str(record.get("type", "")).upper() == "GENERATION" or any(
        name in record for name in ("modelParameters", "usageDetails", "traceId")
    )


def _generation(record: JsonObject) -> JsonObject | None:
    """Return the chat in the ``input`` of an export of generations."""
    value = record.get("input")
    if type(value) is str and value.lstrip()[:1] in ("{", "["):
        value = _decoded(value) or value
    if type(value) is str:
        value = [{"role": "user", "content": value}]
    if type(value) is list:
        value = {"messages": value}
    if type(value) is not dict:
        return None
    return {**_parameters(record), "model": record.get("model"), **value}


_CALL_TYPES = {
    "embedding": EMBEDDINGS,
    "responses": RESPONSES,
    "text_completion": COMPLETIONS,
    "anthropic_messages": MESSAGES,
}
"""The API of each of LiteLLM's call types. An asynchronous type has the same name with
an ``a`` in front."""


def _path(record: JsonObject, request: JsonObject, fields: JsonObject) -> str:
    path = record.get("path") or record.get("url") or request.get("url")
    if path is not None:
        if type(path) is not str:
            raise _FieldError(f"path: {_kind(path)}; expected a text such as /v1/...")
        parts = urlsplit(path)
        return parts.path + (f"?{parts.query}" if parts.query else "")
    call_type = record.get("call_type")
    if type(call_type) is str:
        known = _CALL_TYPES.get(call_type) or _CALL_TYPES.get(call_type[1:])
        if known is not None:
            return known.path
    if "messages" not in fields:
        for name, endpoint in (("prompt", COMPLETIONS), ("input", RESPONSES)):
            if name in fields:
                return endpoint.path
    return DEFAULT_PATH


def _counts(record: JsonObject) -> tuple[int, int]:
    for usage in _usages(record):
        counts = read_token_counts(partial(_count, usage))
        if counts.prompt is not None:
            return counts.prompt, counts.completion or 0
    raise _FieldError("usage.prompt_tokens: missing; expected a number of tokens")


def _usages(record: JsonObject) -> Iterator[JsonObject]:
    response = record.get("response")
    response = _decoded(response) if type(response) is str else response
    response = response if type(response) is dict else {}
    body = response.get("body")
    body = _decoded(body) if type(body) is str else body
    for holder in (record, response, body if type(body) is dict else {}):
        for name in ("usage", "usageDetails", "usage_details"):
            value = holder.get(name)
            value = _decoded(value) if type(value) is str else value
            if type(value) is dict:
                yield value
    yield record


_OTHER_NAMES = {
    "prompt_tokens": ("promptTokens",),
    "completion_tokens": ("completionTokens",),
    "input_tokens": ("input", "inputTokens"),
    "output_tokens": ("output", "outputTokens"),
}


def _count(usage: JsonObject, name: str) -> int | None:
    for spelling in (name, *_OTHER_NAMES.get(name, ())):
        value = usage.get(spelling)
        if value is None or type(value) in (dict, list):
            continue
        count = read_integer(value)
        if count is not None and 0 <= count < _MAX_TOKENS:
            return count
        if spelling == name:
            raise _FieldError(f"usage.{name}: {_kind(value)}; expected a number >= 0")
    return None


def _kind(value: Any) -> str:
    kinds = {type(None): "null", bool: "a boolean", str: "a text", list: "a list"}
    return kinds.get(type(value), "an object" if type(value) is dict else "a number")
