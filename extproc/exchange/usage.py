"""Read token usage from a response body: JSON or server-sent events, in any chunks.

Only what is needed is buffered: the current event of a stream, or the last part of a
JSON body. No bytes from a backend cause an error here.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Protocol

import msgspec

from extproc.json_object import JsonObject
from extproc.routing.token_counts import read_token_counts

MAX_KEPT_BYTES = 256 * 1024
"""Maximum number of bytes to buffer of a JSON body, or of one event. Usage is at the
end of a JSON body; the largest events observed (log probabilities) have a tenth of this
size."""


@dataclass(slots=True)
class Usage:
    """The usage in a response so far."""

    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    truncated: bool = False
    """Whether the output stopped at a token limit."""
    error_status: int | None = None
    """The status code of an error inside the response. A stream that started with a 200
    reports errors this way, and no gateway can retry it."""

    def merge(self, message: object) -> None:
        """Add the usage of a response object or of one event of a stream.

        Partial usage objects are combined: Anthropic's streams send the input tokens
        first and the output tokens last. If a count repeats, the larger one is used.
        """
        if type(message) is not dict:
            return
        if message.get("error"):
            self.error_status = _error_status(message["error"])
        # In events of the Responses and Anthropic APIs, the usage is inside the
        # response.
        for part in (message, message.get("response"), message.get("message")):
            if type(part) is dict:
                self._merge_usage(part.get("usage"))
                self.truncated |= _says_truncated(part)

    def _merge_usage(self, usage: object) -> None:
        if type(usage) is not dict:
            return
        counts = read_token_counts(lambda name: _count(usage.get(name)))
        prompt_tokens = _first_turn(usage) or counts.prompt
        self.prompt_tokens = _larger(self.prompt_tokens, prompt_tokens)
        self.completion_tokens = _larger(self.completion_tokens, counts.completion)


def _first_turn(usage: JsonObject) -> int | None:
    """The prompt tokens of the first model call that a request caused.

    A built-in tool (vLLM's gpt-oss) calls the model again with its result. The total
    covers all calls, but only the first call's prompt was routed.
    """
    details = usage.get("input_tokens_details")
    turns = details.get("input_tokens_per_turn") if type(details) is dict else None
    return _count(turns[0]) if type(turns) is list and turns else None


def _error_status(error: object) -> int:
    code = error.get("code") if type(error) is dict else None
    return code if type(code) is int and 400 <= code < 600 else 500


def _count(value: object) -> int | None:
    return value if type(value) is int and 0 <= value < 1 << 53 else None


def _larger(known: int | None, new: int | None) -> int | None:
    if known is None or new is None:
        return known if new is None else new
    return max(known, new)


def _says_truncated(message: JsonObject) -> bool:
    if message.get("stop_reason") == "max_tokens":
        return True
    delta = message.get("delta")
    if type(delta) is dict and delta.get("stop_reason") == "max_tokens":
        return True
    if message.get("status") == "incomplete":
        return True
    choices = message.get("choices")
    return type(choices) is list and any(
        type(choice) is dict and choice.get("finish_reason") == "length"
        for choice in choices
    )


class UsageReader(Protocol):
    """Reads usage from the chunks of one response body."""

    @property
    def usage(self) -> Usage:
        """The usage read so far."""

    @property
    def complete(self) -> bool:
        """Whether the rest of the body can add nothing to the usage."""

    def feed(self, chunk: bytes) -> bytes:
        """Read a chunk; return the bytes to send to the client for it."""

    def finish(self) -> bytes:
        """End the body; return the bytes still to be sent to the client."""


class JsonUsageReader:
    """Reader of the usage in a JSON body."""

    complete = False

    def __init__(self) -> None:
        self.usage = Usage()
        self._kept = bytearray()
        self._cut = False

    def feed(self, chunk: bytes) -> bytes:
        """Buffer the end of the body."""
        self._kept += chunk
        if len(self._kept) > 2 * MAX_KEPT_BYTES:
            del self._kept[:-MAX_KEPT_BYTES]
            self._cut = True
        return chunk

    def finish(self) -> bytes:
        """Read the usage from the buffer."""
        if not self._cut:
            self.usage.merge(_decode(self._kept))
        else:
            self.usage.merge({"usage": _last_usage(self._kept)})
            self.usage.truncated |= _CUT_OFF.search(self._kept) is not None
        return b""


def _decode(data: bytes | bytearray) -> object:
    try:
        return msgspec.json.decode(data)
    except (msgspec.MsgspecError, UnicodeError, RecursionError):
        return None


def _last_usage(tail: bytearray) -> object:
    """Read the last ``"usage"`` object in the tail of a JSON body.

    Inside a JSON string the quotes would be escaped, so this pattern is always a key.
    """
    at = tail.rfind(b'"usage"')
    if at < 0:
        return None
    text = tail[at + 7 : at + 7 + MAX_USAGE_BYTES].decode(errors="replace")
    try:
        return _DECODER.raw_decode(text.lstrip().removeprefix(":").lstrip())[0]
    except (ValueError, RecursionError):
        return None


MAX_USAGE_BYTES = 4096
"""Maximum bytes of one usage object in a truncated body; vLLM's objects take 100 to
300."""

_DECODER = json.JSONDecoder()
_CUT_OFF = re.compile(rb'"finish_reason"\s{0,4}:\s{0,4}"length"')

# An empty line ends an event; lines end in LF, CR LF or CR. The groups are atomic, so
# that one CR LF never counts as two line ends.
_EVENT_END = re.compile(rb"(?>\r\n|\n|\r)(?>\r\n|\n|\r)")
_EVENT_END_BYTES = 4
_LINE_END = re.compile(rb"\r\n|\n|\r")

# The final events of OpenAI's streams, the Responses API and Anthropic's API.
_LAST_EVENT = re.compile(
    rb"^data: ?\[DONE\]|^event: ?(?:message_stop|response\.(?:completed|incomplete))",
    re.MULTILINE,
)


# An event without any of these marks neither changes the usage nor ends the stream, so
# most of a stream is skipped. ``_USUAL_ENDS`` are the ways in which servers usually end
# an event.
_MARKS = (
    b'"usage"',
    b'"error"',
    b'"length"',
    b'"max_tokens"',
    b"incomplete",
    b"[DONE]",
    b"message_stop",
    b"response.completed",
)
_SLICE_BYTES = 16 * 1024
_USUAL_ENDS = (b"\n\n", b"\n\r\n", b"\r\r")


class SseUsageReader:
    """Reader of the usage in a stream of server-sent events.

    Args:
        drop_usage_chunk: remove the event that the backend sends only because of
            ``include_usage`` (no choices, a usage object), for a client that did not
            request it. All other bytes pass unchanged.
    """

    def __init__(self, *, drop_usage_chunk: bool = False) -> None:
        self.usage = Usage()
        self.complete = False
        self._drop = drop_usage_chunk
        self._pending = bytearray()
        self._searched = 0
        self._overlong = False

    def feed(self, chunk: bytes) -> bytes:
        """Read the events that this chunk completes."""
        if len(chunk) <= _SLICE_BYTES:
            return self._feed(chunk)
        # A chunk this large may be a whole stream, as after decompression. Slices of it
        # that have no mark are skipped.
        return b"".join(
            self._feed(chunk[at : at + _SLICE_BYTES])
            for at in range(0, len(chunk), _SLICE_BYTES)
        )

    def _feed(self, chunk: bytes) -> bytes:
        self._pending += chunk
        passed = bytearray()
        # A CR at the end may be half of a CR LF, so it is not yet known where the event
        # ends.
        end = len(self._pending) - self._pending.endswith(b"\r")
        start = self._tells_nothing_until(end)
        if start:
            passed += self._pending[:start]
            self._searched = start
            self._overlong = False
        while match := self._next_end(start, end):
            passed += self._complete(bytes(self._pending[start : match.end()]))
            start = self._searched = match.end()
        del self._pending[:start]
        self._searched = max(0, len(self._pending) - _EVENT_END_BYTES)
        self.complete &= not self._pending
        if len(self._pending) > MAX_KEPT_BYTES:
            # Keep the last bytes, because they may be the first half of the end of the
            # event.
            passed += self._pending[:-_EVENT_END_BYTES]
            del self._pending[:-_EVENT_END_BYTES]
            self._searched = 0
            self._overlong = True
        return bytes(passed) if self._drop else chunk

    def finish(self) -> bytes:
        """Read the last event, which may lack its empty line."""
        rest = self._complete(bytes(self._pending))
        self._pending.clear()
        return rest if self._drop else b""

    def _next_end(self, start: int, end: int) -> re.Match[bytes] | None:
        # An empty line at the start of an event counts as an event without lines,
        # because the boundaries must not depend on how the stream is split.
        at_once = None
        if not self._overlong:
            at_once = _LINE_END.match(self._pending, start, end)
        return at_once or _EVENT_END.search(
            self._pending, max(start, self._searched), end
        )

    def _tells_nothing_until(self, end: int) -> int:
        # Only new bytes are scanned or passed on, so the time is linear in the stream's
        # size.
        ends = [
            at + len(stop)
            for stop in _USUAL_ENDS
            if (at := self._pending.rfind(stop, self._searched, end)) >= 0
        ]
        last = max(ends, default=0)
        if last and self._pending[last - 1 : last + 1] == b"\r\n":
            last += 1  # the empty line itself
        matters = any(self._pending.find(mark, 0, last) >= 0 for mark in _MARKS)
        return 0 if matters else last

    def _complete(self, event: bytes) -> bytes:
        if self._overlong:  # its first part has already passed
            self._overlong = False
            return event
        if _LAST_EVENT.search(event):
            self.complete = True
        if not (b'"usage"' in event or _may_tell_how_it_ended(event)):
            return event
        message = _decode(_event_data(event))
        self.usage.merge(message)
        if self._drop and _only_usage(message):
            return b""
        return event


def _may_tell_how_it_ended(event: bytes) -> bool:
    return (
        b'"error"' in event
        or b'"length"' in event
        or b'"max_tokens"' in event
        or b"incomplete" in event
    )


def _event_data(event: bytes) -> bytes:
    lines = [
        line[5:].removeprefix(b" ")
        for line in _LINE_END.split(event)
        if line.startswith(b"data:")
    ]
    return b"\n".join(lines)


def _only_usage(message: object) -> bool:
    return (
        type(message) is dict
        and type(message.get("usage")) is dict
        and message.get("choices") == []
    )


class LabelledJsonReader:
    """Reader of the usage in a body labeled as JSON, which may still be a stream.

    vLLM's example proxy for prefill and decode labels every response
    ``application/json``. The first byte determines the format, because no JSON value
    starts like a line of an event stream.

    Args:
        drop_usage_chunk: as in ``SseUsageReader``, if the body is a stream.
    """

    def __init__(self, *, drop_usage_chunk: bool = False) -> None:
        self._drop = drop_usage_chunk
        self._reader: UsageReader | None = None
        self._nothing = Usage()

    @property
    def usage(self) -> Usage:
        """The usage read so far."""
        return self._reader.usage if self._reader is not None else self._nothing

    @property
    def complete(self) -> bool:
        """Whether a stream is complete."""
        return self._reader is not None and self._reader.complete

    def feed(self, chunk: bytes) -> bytes:
        """Find the format by the first byte that is not whitespace; read the chunk."""
        if self._reader is None:
            begin = chunk.lstrip()
            if not begin:
                return chunk
            if begin[:1] in _EVENT_BEGINS:
                self._reader = SseUsageReader(drop_usage_chunk=self._drop)
            else:
                self._reader = JsonUsageReader()
        return self._reader.feed(chunk)

    def finish(self) -> bytes:
        """End the body; return the bytes still to be sent to the client."""
        return self._reader.finish() if self._reader is not None else b""


#: First bytes of the fields data, event, id and retry, and of a comment.
_EVENT_BEGINS = frozenset({b"d", b"e", b"i", b"r", b":"})


def usage_reader(
    content_type: str, *, drop_usage_chunk: bool = False
) -> UsageReader | None:
    """Return the reader for a content type, or None if such a response has no usage."""
    kind = content_type.partition(";")[0].strip().lower()
    if kind == "text/event-stream":
        return SseUsageReader(drop_usage_chunk=drop_usage_chunk)
    if kind == "application/json":
        return LabelledJsonReader(drop_usage_chunk=drop_usage_chunk)
    return None
