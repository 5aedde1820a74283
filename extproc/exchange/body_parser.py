"""Turn a body as received into a request, or into the reason why it is not one.

This is the only path from bytes to a request. The server, ``explain``, ``replay`` and
the demo all use it, and therefore give the same reason for the same body.
"""

from __future__ import annotations

from msgspec.structs import replace

from extproc.exchange.encoding import Decoding, decode_in_steps
from extproc.exchange.json_elider import (
    DIRECT_BYTES,
    JsonElider,
    TooIntricate,
    is_large,
)
from extproc.exchange.openai import NotARequestError, parse_source
from extproc.exchange.paths import ANY_PREFIX, Target
from extproc.exchange.source import Source, Whole
from extproc.routing.policy import Reason
from extproc.routing.request import MAX_MODEL_CHARS, Request

MAX_BODY_BYTES = 1 << 20
"""The default size limit of a body, in bytes."""


def parse_request(
    path: str,
    body: bytes | memoryview,
    encoding: str = "",
    max_body_bytes: int = MAX_BODY_BYTES,
) -> Request | Reason:
    """Parse an inference request, or return the reason why it is not one.

    Args:
        path: request path, including the query string.
        body: as received; never raises on its bytes.
        encoding: the ``content-encoding`` header; empty if absent.
        max_body_bytes: the size limit, both as received and after decoding.

    Returns:
        The request, or ``UNDECODABLE``, ``UNPARSABLE`` or ``TOO_LARGE``.
    """
    target = ANY_PREFIX.find(path)
    return BodyParser(target, body, encoding, max_body_bytes).finish()


class BodyParser:
    """Parses a body in steps of at most a few milliseconds each.

    Args:
        target: the API and model in the request's path; None gives ``UNPARSABLE``.
        body: as received.
        encoding: the ``content-encoding`` header; empty if absent.
        max_body_bytes: the size limit, both as received and after decoding.
    """

    __slots__ = (
        "_body",
        "_decoding",
        "_elider",
        "_fault",
        "_target",
        "detail",
        "result",
    )

    def __init__(
        self,
        target: Target | None,
        body: bytes | memoryview,
        encoding: str,
        max_body_bytes: int,
    ) -> None:
        self.result: Request | Reason | None = None
        """The parsed request, or the reason why there is none: ``UNDECODABLE``,
        ``UNPARSABLE`` or ``TOO_LARGE``. None until the last step."""
        self.detail = ""
        """Explanation of a failure, without any text of the body."""
        self._target = target
        self._body = body
        self._decoding: Decoding | None = None
        if len(body) > max_body_bytes:
            self.result = Reason.TOO_LARGE
        elif encoding:
            self._decoding = decode_in_steps(bytes(body), encoding, max_body_bytes)
        self._elider: JsonElider | None = None
        self._fault: Exception | None = None

    @property
    def may_take_long(self) -> bool:
        """Whether the body is large enough to yield to other work between steps."""
        return self._decoding is not None or len(self._body) > DIRECT_BYTES

    def finish(self) -> Request | Reason:
        """Run all remaining steps and return the result.

        Raises:
            Exception: any internal error.
        """
        while self.step():
            pass
        if self._fault is not None:
            raise self._fault
        assert self.result is not None
        return self.result

    def step(self) -> bool:
        """Run one step. Return false if none is left.

        Never raises: ``finish`` raises an internal error. After such an error, nothing
        more is read, because the rest of the body might be misparsed.
        """
        if self.result is not None or self._fault is not None:
            return False
        try:
            if self._decoding is not None:
                self._decode(self._decoding)
            elif self._elider is None and not is_large(self._body):
                self._parse(Whole(self._body))
            else:
                self._elide()
        except Exception as error:
            self._fault = error
            return False
        return self.result is None

    def _elide(self) -> None:
        if self._elider is None:
            self._elider = JsonElider(self._body)
        try:
            if not self._elider.step():
                self._parse(self._elider.elided())
        except TooIntricate:
            self.result = Reason.TOO_LARGE

    def _decode(self, decoding: Decoding) -> None:
        try:
            next(decoding)
        except StopIteration as done:
            if done.value is None:
                self.result = Reason.UNDECODABLE
            else:
                self._body, self._decoding = done.value, None

    def _parse(self, source: Source) -> None:
        if self._target is None:
            self.result, self.detail = Reason.UNPARSABLE, "path: not a parsed API"
            return
        try:
            request = parse_source(self._target.endpoint, source)
        except NotARequestError as error:
            self.result, self.detail = Reason.UNPARSABLE, str(error)
            return
        if self._target.model and not request.model:
            request = replace(request, model=self._target.model[:MAX_MODEL_CHARS])
        self.result = request
