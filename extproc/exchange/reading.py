"""A body as it came on the wire, to a request or the reason why it cannot be one."""

from __future__ import annotations

from extproc.exchange.encoding import decode_content
from extproc.exchange.openai import parse_request
from extproc.routing.policy import Reason
from extproc.routing.request import Request


def read_request(
    path: str, body: bytes, encoding: str, max_body_bytes: int
) -> Request | Reason:
    """Read an inference request.

    Args:
        path: request path, query string and all.
        body: as received.
        encoding: the ``content-encoding`` header; empty for none.
        max_body_bytes: the most that the body may hold once it is decoded.

    Returns:
        The request; ``UNDECODABLE`` or ``UNPARSABLE`` where there is none to read.
    """
    if encoding:
        decoded = decode_content(body, encoding, max_body_bytes)
        if decoded is None:
            return Reason.UNDECODABLE
        body = decoded
    return parse_request(path, body) or Reason.UNPARSABLE
