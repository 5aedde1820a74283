"""Asking for a stream's usage in the place of a client that did not."""

from __future__ import annotations

_ASK = b',"stream_options":{"include_usage":true}}'


def ask_for_usage(body: bytes) -> bytes | None:
    """Add ``stream_options.include_usage`` to a JSON request, byte by byte the same.

    Args:
        body: a JSON object with at least one key (it was parsed already).

    Returns:
        The new body; None where the client named ``stream_options`` itself (perhaps
        only inside a text: not worth a parse), or the body does not end as an
        object does.
    """
    end = body.rstrip(b" \t\r\n")
    if b'"stream_options"' in body or not end.endswith(b"}"):
        return None
    return end[:-1] + _ASK
