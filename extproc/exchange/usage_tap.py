"""Observe the response to a decision: its status and usage."""

from __future__ import annotations

from extproc.exchange.encoding import decode_content
from extproc.exchange.events import Observation, ResponseHeaders
from extproc.exchange.usage import UsageReader, usage_reader
from extproc.routing.router import Decision, Outcome

MAX_ENCODED_RESPONSE_BYTES = 1 << 20
"""Maximum size of a compressed response in bytes; nothing is learned from a larger
one."""

MAX_DECODED_RESPONSE_BYTES = 2 << 20
"""Maximum decoded size of a response, in bytes. Scanning a stream blocks the event loop
for 5 ms per MiB, or for 0.2 s if each of its events has a "usage" of null."""


class UsageTap:
    """Reads the usage from a response's body as it passes.

    Args:
        decision: the decision about the request.
        attempts: how often Envoy sent the request to a backend.
        encoding: the response's content-encoding; empty if absent.
        reader: the reader for the response's content type.
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
        """Whether the rest of the body can add nothing to the outcome."""
        return self._reader.complete

    def read(self, chunk: bytes) -> bytes:
        """Read a part of the body; return the bytes to send to the client now."""
        if self._encoded is None:
            return self._reader.feed(chunk)
        if len(self._encoded) <= MAX_ENCODED_RESPONSE_BYTES:
            self._encoded += chunk
        return chunk

    def finish(self) -> bytes:
        """End the body: read the buffer, and return the bytes still to be sent."""
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
        """The response's outcome, as far as the response was read."""
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
    """Start observing a response, or return the observation if the body adds nothing.

    Args:
        decision: the decision about the request.
        event: the response's headers.
        injected: whether the router requested usage on the client's behalf; the client
            must not receive the event that contains it.
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
