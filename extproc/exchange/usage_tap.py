"""The response to a decision, watched for what it teaches: its status and usage."""

from __future__ import annotations

from extproc.exchange.encoding import decode_content
from extproc.exchange.events import Observation, ResponseHeaders
from extproc.exchange.usage import UsageReader, usage_reader
from extproc.routing.router import Decision, Outcome

MAX_ENCODED_RESPONSE_BYTES = 1 << 20
"""Of a compressed response; one that is larger teaches nothing."""

MAX_DECODED_RESPONSE_BYTES = 2 << 20
"""A stream takes 5 ms a MiB to look through, and 0.2 s where each of its events has a
"usage" of null, on the event loop."""


class UsageTap:
    """Reads the usage out of a response's body as it passes.

    Args:
        decision: the one that the response came of.
        attempts: how often Envoy asked a backend for it.
        encoding: the response's content-encoding; empty: none.
        reader: of its content type.
    """

    def __init__(
        self, decision: Decision, attempts: int, encoding: str, reader: UsageReader
    ) -> None:
        self._decision = decision
        self._attempts = attempts
        self._encoding = encoding
        self._reader = reader
        self._encoded = bytearray() if encoding else None

    @property
    def complete(self) -> bool:
        """Whether no later part of the body can tell more."""
        return self._reader.complete

    def read(self, chunk: bytes) -> bytes:
        """Take a part of the body; return what of it the client gets now."""
        if self._encoded is None:
            return self._reader.feed(chunk)
        if len(self._encoded) <= MAX_ENCODED_RESPONSE_BYTES:
            self._encoded += chunk
        return chunk

    def finish(self) -> bytes:
        """The body is over: read what was kept, return what is still owed of it."""
        if self._encoded is None:
            return self._reader.finish()
        if len(self._encoded) <= MAX_ENCODED_RESPONSE_BYTES:
            decoded = decode_content(
                bytes(self._encoded), self._encoding, MAX_DECODED_RESPONSE_BYTES
            )
            self._reader.feed(decoded or b"")
        self._reader.finish()
        return b""

    def observe(self) -> Observation:
        """What the response said, as far as it was read."""
        usage = self._reader.usage
        outcome = Outcome(
            usage.error_status or 200,
            usage.prompt_tokens,
            usage.completion_tokens,
            usage.truncated,
            self._attempts,
        )
        return Observation(self._decision, outcome)


def watch_response(
    decision: Decision, event: ResponseHeaders, *, injected: bool
) -> UsageTap | Observation:
    """Begin to watch a response, or observe it at once where its body tells no more.

    Args:
        decision: the one that it came of.
        event: its headers.
        injected: whether we asked for usage in the client's place, who must not get
            the event that it comes in.
    """
    headers = event.headers
    status = _number(headers.get(":status", ""))
    attempts = max(1, _number(headers.get("x-envoy-attempt-count", "")))
    encoding = headers.get("content-encoding", "")
    reader = None
    if status == 200 and not event.end_of_stream:
        reader = usage_reader(
            headers.get("content-type", ""), drop_usage_chunk=injected and not encoding
        )
    if reader is None:
        return Observation(decision, Outcome(status, attempts=attempts))
    return UsageTap(decision, attempts, encoding, reader)


def _number(text: str) -> int:
    return int(text[:9]) if text.isascii() and text.isdigit() else 0
