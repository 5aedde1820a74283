"""The quick reader of bodies against protobuf's."""

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from extproc.exchange.events import RequestBody
from extproc.server.codec import UnknownMessageError, decode
from extproc.server.quick_bodies import LARGE_BYTES, read_body
from extproc.wire import ext_proc_pb2 as pb


def body_message(body: bytes, end_of_stream: bool) -> pb.ProcessingRequest:
    message = pb.ProcessingRequest()
    message.request_body.body = body
    message.request_body.end_of_stream = end_of_stream
    return message


METADATA = b"\x42\x00"
"""An empty metadata_context, at the end of each of Envoy's messages."""
CONFIG = b"\x5a\x02\x08\x02"


@pytest.mark.parametrize("tail", [b"", METADATA, METADATA + CONFIG])
@pytest.mark.parametrize("end_of_stream", [True, False])
@pytest.mark.parametrize("size", [LARGE_BYTES, 100_000, 3_000_000])
def test_reads_a_large_body_without_a_copy(
    size: int, end_of_stream: bool, tail: bytes
) -> None:
    data = body_message(b"x" * size, end_of_stream).SerializeToString() + tail

    event = read_body(data)

    assert event is not None
    assert isinstance(event.body, memoryview)
    assert event.body.obj is data
    assert (bytes(event.body), event.end_of_stream) == (b"x" * size, end_of_stream)


LARGE = body_message(b"x" * LARGE_BYTES, True)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        body_message(b"x" * 100, True).SerializeToString(),
        LARGE.SerializeToString() + b"\x50\x01",
        LARGE.SerializeToString() + METADATA + b"\x42\x05",
        LARGE.SerializeToString() + LARGE.SerializeToString(),
        pb.ProcessingRequest(
            response_body=pb.HttpBody(body=b"x" * LARGE_BYTES)
        ).SerializeToString(),
    ],
    ids=["nothing", "small", "another field", "cut off", "twice", "a response"],
)
def test_leaves_the_rest_to_the_general_reader(data: bytes) -> None:
    assert read_body(data) is None


@given(
    at=st.integers(0, 12) | st.integers(LARGE_BYTES, LARGE_BYTES + 12),
    octet=st.integers(0, 255),
    cut=st.integers(0, 6),
)
def test_reads_nothing_that_the_general_reader_reads_otherwise(
    at: int, octet: int, cut: int
) -> None:
    changed = bytearray(LARGE.SerializeToString() + METADATA)
    changed[min(at, len(changed) - 1)] = octet
    data = bytes(changed[: len(changed) - cut])

    event = read_body(data)

    if event is not None:
        message = pb.ProcessingRequest.FromString(data)
        assert message.WhichOneof("request") == "request_body"
        assert bytes(event.body) == message.request_body.body
        assert event.end_of_stream == message.request_body.end_of_stream
        assert decode(data) == event
    else:
        with contextlib.suppress(UnknownMessageError):
            assert not isinstance(getattr(decode(data), "body", None), memoryview)


def test_the_codec_uses_it() -> None:
    event = decode(LARGE.SerializeToString())

    assert isinstance(event, RequestBody)
    assert isinstance(event.body, memoryview)
