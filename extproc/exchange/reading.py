"""A body as it came on the wire, to a request or the reason why it cannot be one."""

from __future__ import annotations

from extproc.exchange.encoding import decode_content
from extproc.exchange.openai import Source, Whole, parse_source
from extproc.exchange.outline import Outliner, TooIntricate, is_large
from extproc.routing.policy import Reason
from extproc.routing.request import Request


class Reading:
    """A body that is read in steps, none of which takes more than a few milliseconds.

    Args:
        path: request path, query string and all.
        body: as received.
        encoding: the ``content-encoding`` header; empty for none.
        max_body_bytes: the most that the body may hold once it is decoded.
    """

    __slots__ = (
        "_body",
        "_encoding",
        "_max_body_bytes",
        "_outliner",
        "_path",
        "result",
    )

    def __init__(
        self,
        path: str,
        body: bytes | memoryview,
        encoding: str,
        max_body_bytes: int,
    ) -> None:
        self.result: Request | Reason | None = None
        """The request once it is read, or why there is none: ``UNDECODABLE``,
        ``UNPARSABLE`` or ``TOO_LARGE``."""
        self._path = path
        self._body = body
        self._encoding = encoding
        self._max_body_bytes = max_body_bytes
        self._outliner: Outliner | None = None

    def finish(self) -> Request | Reason:
        """Read all that is left."""
        while self.result is None:
            self.step()
        return self.result

    def step(self) -> bool:
        """Go on reading; false once there is a result."""
        if self._encoding:
            return self._decode()
        if self._outliner is None:
            if not is_large(self._body):
                self._parse(Whole(self._body))
                return False
            self._outliner = Outliner(self._body)
        try:
            if not self._outliner.step():
                self._parse(self._outliner.outline())
        except TooIntricate:
            self.result = Reason.TOO_LARGE
        return self.result is None

    def _decode(self) -> bool:
        decoded = decode_content(
            bytes(self._body), self._encoding, self._max_body_bytes
        )
        if decoded is None:
            self.result = Reason.UNDECODABLE
        else:
            self._body, self._encoding = decoded, ""
        return self.result is None

    def _parse(self, source: Source) -> None:
        self.result = parse_source(self._path, source) or Reason.UNPARSABLE


def read_request(
    path: str, body: bytes | memoryview, encoding: str, max_body_bytes: int
) -> Request | Reason:
    """Read an inference request in one go; see ``Reading``."""
    return Reading(path, body, encoding, max_body_bytes).finish()
