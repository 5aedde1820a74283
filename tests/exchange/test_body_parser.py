"""A body on the wire becomes a request, or the reason why it is not a request."""

import gzip

import pytest

from extproc.exchange.body_parser import BodyParser
from extproc.exchange.paths import ANY_PREFIX
from extproc.exchange.source import Source
from extproc.routing.policy import Reason
from extproc.routing.request import Request

BODY = b'{"model": "m", "messages": [{"role": "user", "content": "hello"}]}'
PATH = "/v1/chat/completions"


@pytest.mark.parametrize(
    ("body", "encoding"), [(BODY, ""), (gzip.compress(BODY, mtime=0), "gzip")]
)
def test_reads_the_text_whatever_the_encoding(body: bytes, encoding: str) -> None:
    request = BodyParser(ANY_PREFIX.find(PATH), body, encoding, 1000).finish()
    assert isinstance(request, Request)
    assert request.prompt.text == b"hello"
    assert request.body_bytes == len(BODY)


@pytest.mark.parametrize(
    ("path", "body", "encoding", "reason"),
    [
        (PATH, b"not json", "", Reason.UNPARSABLE),
        ("/v1/other", BODY, "", Reason.UNPARSABLE),
        (PATH, BODY, "gzip", Reason.UNDECODABLE),
        (PATH, BODY, "unheard-of", Reason.UNDECODABLE),
        (PATH, gzip.compress(bytes(100_000)), "gzip", Reason.UNDECODABLE),
        (PATH, BODY + b" " * 1000, "", Reason.TOO_LARGE),
        (PATH, BODY + b" " * 1000, "gzip", Reason.TOO_LARGE),
    ],
    ids=[
        *("not JSON", "another path", "not gzip", "unknown encoding"),
        *("too large decoded", "too large", "too large encoded"),
    ],
)
def test_says_why_there_is_no_request(
    path: str, body: bytes, encoding: str, reason: Reason
) -> None:
    reading = BodyParser(ANY_PREFIX.find(path), body, encoding, 1000)
    assert reading.finish() is reason
    assert not reading.step()


class BrokenOnce(BodyParser):
    broke = False

    def _parse(self, source: Source) -> None:
        if not self.broke:
            self.broke = True
            raise ZeroDivisionError
        super()._parse(source)


def test_a_fault_of_ours_is_for_whoever_finishes() -> None:
    """A half-parsed body must not be mistaken for the client's whole body."""
    reading = BrokenOnce(ANY_PREFIX.find(PATH), BODY, "", 1000)
    assert not reading.step()
    assert not reading.step()
    for _ in range(2):
        with pytest.raises(ZeroDivisionError):
            reading.finish()
    assert reading.result is None
