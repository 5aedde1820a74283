"""The fast decoders agree with protobuf on every message that they accept."""

import contextlib
from pathlib import Path
from types import ModuleType

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from extproc.exchange.events import (
    BodyMode,
    RequestBody,
    RequestHeaders,
    ResponseHeaders,
)
from extproc.server.services import fast_decode as fast_decode_module
from extproc.server.services.codec import UnknownMessageError, decode, decode_any
from extproc.server.services.fast_decode import (
    HeadersRead,
    fast_decode,
    read_headers_in_python,
)
from extproc.wire import ext_proc_pb2 as pb

from ...c_modules import compiled

NAMES = (":path", ":method", "content-length", "x-llm-category", ":status")
WANTED = {name.encode(): name for name in NAMES}

values = st.binary(max_size=20) | st.binary(min_size=120, max_size=300)
names = st.sampled_from(NAMES) | st.text("abcdefgh-:", max_size=200)


@st.composite
def messages(draw: st.DrawFn) -> pb.ProcessingRequest:
    message = pb.ProcessingRequest()
    phase = draw(st.sampled_from(["request_headers", "response_headers"]))
    sent = getattr(message, phase)
    sent.SetInParent()
    for key, value in draw(st.lists(st.tuples(names, values), max_size=12)):
        header = sent.headers.headers.add()
        header.key, header.raw_value = key, value
        if draw(st.integers(0, 9)) == 0:
            header.value = "old"
    sent.end_of_stream = draw(st.booleans())
    if draw(st.booleans()):
        message.protocol_config.SetInParent()
        message.protocol_config.request_body_mode = draw(st.integers(0, 5))  # type: ignore[assignment]
        message.protocol_config.response_body_mode = draw(st.integers(0, 5))  # type: ignore[assignment]
    message.observability_mode = draw(st.integers(0, 9)) == 0
    return message


CONTEXTS = st.sampled_from([b"", b"\x42\x00", b"\x42\x02\x0a\x00", b"\x4a\x02\x0a\x00"])
"""Encoded metadata_context and attributes, fields that the project's subset lacks."""


def with_context(message: pb.ProcessingRequest, context: bytes) -> bytes:
    """Insert fields where Envoy puts them, between the headers and the configuration."""
    configuration = pb.ProcessingRequest(observability_mode=message.observability_mode)
    if message.HasField("protocol_config"):
        configuration.protocol_config.CopyFrom(message.protocol_config)
    head = pb.ProcessingRequest()
    head.CopyFrom(message)
    head.ClearField("protocol_config")
    head.observability_mode = False
    return head.SerializeToString() + context + configuration.SerializeToString()


def wanted_of(
    event: RequestHeaders | ResponseHeaders,
) -> RequestHeaders | ResponseHeaders:
    headers = {k: v for k, v in event.headers.items() if k in NAMES}
    if isinstance(event, ResponseHeaders):
        return ResponseHeaders(headers, event.end_of_stream)
    return RequestHeaders(
        headers, event.end_of_stream, event.request_mode, event.response_mode
    )


@given(messages(), CONTEXTS)
def test_reads_what_protobuf_reads(
    message: pb.ProcessingRequest, context: bytes
) -> None:
    data = with_context(message, context)

    general = decode_any(data)

    assert isinstance(general, RequestHeaders | ResponseHeaders)
    assert fast_decode(data, WANTED) in (wanted_of(general), None)
    quick = decode(data, WANTED)
    assert isinstance(quick, RequestHeaders | ResponseHeaders)
    assert wanted_of(quick) == wanted_of(general)


@st.composite
def damaged_messages(draw: st.DrawFn) -> bytes:
    data = bytearray(draw(messages()).SerializeToString())
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, max(0, len(data) - 1)))
        kind = draw(st.sampled_from(["change", "cut", "add"]))
        if kind == "add" or not data:
            data.insert(at, draw(st.integers(0, 255)))
        elif kind == "cut":
            del data[at:]
        else:
            data[at] = draw(st.integers(0, 255))
    return bytes(data)


@given(damaged_messages())
def test_reads_damaged_messages_alike_or_not_at_all(data: bytes) -> None:
    quick = fast_decode(data, WANTED)

    if quick is not None:
        try:
            general = decode_any(data)
        except UnknownMessageError:
            return  # the fast decoder does not validate headers that it does not read
        assert isinstance(general, RequestHeaders | ResponseHeaders)
        assert quick == wanted_of(general)


@pytest.fixture(scope="module")
def c_decoder(tmp_path_factory: pytest.TempPathFactory) -> ModuleType:
    source = Path(fast_decode_module.__file__).with_name("_fast_decode.c")
    return compiled(source, tmp_path_factory.mktemp("fast_decode"))


@given(messages(), CONTEXTS)
def test_c_and_python_read_alike(
    c_decoder: ModuleType, message: pb.ProcessingRequest, context: bytes
) -> None:
    phases = message.request_headers, message.response_headers
    assume(all(each.key for phase in phases for each in phase.headers.headers))
    data = with_context(message, context)

    found: HeadersRead | None = c_decoder.read_headers(data, WANTED)

    assert found == read_headers_in_python(data, WANTED)


@given(damaged_messages() | st.binary(max_size=60))
def test_c_reads_damaged_messages_as_python_does_or_not_at_all(
    c_decoder: ModuleType, data: bytes
) -> None:
    found: HeadersRead | None = c_decoder.read_headers(data, WANTED)

    assert found in (read_headers_in_python(data, WANTED), None)


@pytest.mark.parametrize("arguments", [(bytearray(b"\x12"), {}), (b"\x12", [])])
def test_c_refuses_arguments_of_other_types(
    c_decoder: ModuleType, arguments: tuple[object, object]
) -> None:
    with pytest.raises(TypeError):
        c_decoder.read_headers(*arguments)


def field(tag: int, content: bytes) -> bytes:
    """Return a length-delimited field of at most 127 bytes."""
    return bytes((tag, len(content))) + content


def header(key: bytes, *values: bytes) -> bytes:
    return field(0x0A, field(0x0A, key) + b"".join(field(0x1A, v) for v in values))


PATH = header(b":path", b"/")
OTHER = header(b"x-other", b"/")
END = b"\x18\x01"


@pytest.mark.parametrize(
    "data",
    [
        b"\x12\x0a" + field(0x0A, PATH + PATH),
        field(0x12, b"\x0a\x0c" + PATH + PATH),
        field(0x12, b"\x0a\x0c" + OTHER + PATH),
        field(0x12, field(0x0A, b"\x0a\x05\x0a\x05:pa" + b"th\x1a\x01/")),
        field(0x12, field(0x0A, b"\x0a\x10\x0a\x07x-other\x1a\x05/")) + b"\x42\x02ab",
        field(0x12, field(0x0A, b"\x0a\x0e\x0a\x05:path\x1a\x05/")) + b"\x42\x02ab",
        field(0x12, field(0x0A, header(b":path", b"a", b"b"))),
        field(0x12, field(0x0A, b"\x0a\x0b\x0a\x05:path\x1a\x01/x")),
        field(0x12, field(0x0A, PATH) + field(0x0A, header(b":method", b"PUT"))),
        field(0x12, field(0x0A, PATH) + END + field(0x0A, header(b":method", b"P"))),
        field(0x12, field(0x0A, PATH) + b"\x18\x02"),
        field(0x12, field(0x0A, PATH) + b"\x18\x00"),
        field(0x12, field(0x0A, PATH) + b"\x18\x00\x18\x01"),
        field(0x12, field(0x0A, PATH)) + b"\x5a\x04\x08\x85\x10\x01",
        field(0x12, field(0x0A, PATH)) + b"\x5a\x02\x10\x85",
        field(0x12, field(0x0A, PATH)) + b"\x5a\x02\x08\x02" + field(0x22, b""),
        field(0x12, field(0x0A, PATH)) + field(0x22, b""),
    ],
    ids=[
        "headers longer than their phase",
        "a header that is cut off",
        "headers that end within one",
        "a name longer than its header",
        "a header that goes on after the phase",
        "a value that goes on after the phase",
        "two values",
        "something after the value",
        "headers twice",
        "headers after the end",
        "an end of another truth",
        "no end, said",
        "an end twice",
        "a request's mode of two bytes",
        "a response's mode that is cut off",
        "another phase after the configuration",
        "another phase",
    ],
)
def test_leaves_what_is_odd_to_protobuf(data: bytes) -> None:
    assert fast_decode(data, WANTED) is None


def test_reads_no_message_that_is_cut_off() -> None:
    whole = field(0x12, field(0x0A, PATH + header(b":method", b"POST")))
    assert fast_decode(whole, WANTED) is not None
    for length in range(len(whole)):
        assert fast_decode(whole[:length], WANTED) is None


def test_does_what_it_is_for() -> None:
    """The fast decoder reads Envoy's own format without protobuf."""
    message = pb.ProcessingRequest()
    for key in (*NAMES, "x-other"):
        header = message.request_headers.headers.headers.add()
        header.key, header.raw_value = key, b"v" * 150
    message.protocol_config.request_body_mode = pb.ProcessingMode.BUFFERED

    event = fast_decode(with_context(message, b"\x42\x00"), WANTED)

    assert event == RequestHeaders(
        dict.fromkeys(NAMES, "v" * 150), False, BodyMode.BUFFERED, BodyMode.NONE
    )


@pytest.mark.parametrize("size", [100, 1000, 16 * 1024, 40_000])
def test_reads_headers_of_any_size(size: int) -> None:
    message = pb.ProcessingRequest()
    header = message.request_headers.headers.headers.add()
    header.key, header.raw_value = ":path", b"/" * size

    event = fast_decode(message.SerializeToString(), WANTED)

    assert event == RequestHeaders({":path": "/" * size}, False)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x22\x00",  # a body
        b"\x12",
        b"\x12\x05",
        b"\x12\x02\x0a\x05",
        b"\x12\x80\x80\x01",
        b"\x12\x80\x80\x80\x80\x80\x00",  # a six-byte length
        b"\x12\x00\x12\x00",
        b"\x12\x00\x52\x00",
    ],
)
def test_leaves_the_rest_to_protobuf(data: bytes) -> None:
    assert fast_decode(data, WANTED) is None


def body_message(body: bytes, end_of_stream: bool) -> pb.ProcessingRequest:
    message = pb.ProcessingRequest()
    message.request_body.body = body
    message.request_body.end_of_stream = end_of_stream
    return message


METADATA = b"\x42\x00"
"""An empty metadata_context, with which each message from Envoy ends."""
CONFIG = b"\x5a\x02\x08\x02"


@pytest.mark.parametrize("tail", [b"", METADATA, METADATA + CONFIG])
@pytest.mark.parametrize("end_of_stream", [True, False])
@pytest.mark.parametrize("size", [1, 127, 128, 16_384, 100_000, 3_000_000])
def test_reads_a_body_without_a_copy(
    size: int, end_of_stream: bool, tail: bytes
) -> None:
    data = body_message(b"x" * size, end_of_stream).SerializeToString() + tail

    event = fast_decode(data, WANTED)

    assert isinstance(event, RequestBody)
    assert isinstance(event.body, memoryview)
    assert event.body.obj is data
    assert (bytes(event.body), event.end_of_stream) == (b"x" * size, end_of_stream)


BODY_BYTES = 16_384
BODY = body_message(b"x" * BODY_BYTES, True)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        BODY.SerializeToString() + b"\x50\x01",
        BODY.SerializeToString() + METADATA + b"\x42\x05",
        BODY.SerializeToString() + BODY.SerializeToString(),
        pb.ProcessingRequest(
            response_body=pb.HttpBody(body=b"x" * BODY_BYTES)
        ).SerializeToString(),
    ],
    ids=["nothing", "another field", "cut off", "twice", "a response"],
)
def test_leaves_the_rest_to_the_general_reader(data: bytes) -> None:
    assert fast_decode(data, WANTED) is None


@given(
    at=st.integers(0, 12) | st.integers(BODY_BYTES, BODY_BYTES + 12),
    byte=st.integers(0, 255),
    cut=st.integers(0, 6),
)
def test_reads_nothing_that_the_general_reader_reads_otherwise(
    at: int, byte: int, cut: int
) -> None:
    changed = bytearray(BODY.SerializeToString() + METADATA)
    changed[min(at, len(changed) - 1)] = byte
    data = bytes(changed[: len(changed) - cut])

    event = fast_decode(data, WANTED)

    if event is not None:
        assert isinstance(event, RequestBody)
        message = pb.ProcessingRequest.FromString(data)
        assert message.WhichOneof("request") == "request_body"
        assert bytes(event.body) == message.request_body.body
        assert event.end_of_stream == message.request_body.end_of_stream
        assert decode(data, WANTED) == event
    else:
        with contextlib.suppress(UnknownMessageError):
            assert not isinstance(
                getattr(decode(data, WANTED), "body", None), memoryview
            )


def test_the_codec_uses_it() -> None:
    event = decode(BODY.SerializeToString(), WANTED)

    assert isinstance(event, RequestBody)
    assert isinstance(event.body, memoryview)
