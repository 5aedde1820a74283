"""Fuzz targets, none of which may raise an exception on hostile bytes.

Each target takes bytes. It checks that no exception escapes, and that the result
satisfies invariants that hold for all inputs.
"""

import json
import zlib
from collections.abc import Callable

from extproc.exchange.body_parser import BodyParser, parse_request
from extproc.exchange.encoding import decode_content
from extproc.exchange.feedback import FeedbackSampler
from extproc.exchange.openai import DEFAULT_PATH, ENDPOINTS, ask_for_usage
from extproc.exchange.paths import ANY_PREFIX
from extproc.exchange.settings import ExchangeSettings
from extproc.exchange.usage import MAX_KEPT_BYTES, Usage, UsageReader, usage_reader
from extproc.routing.category import classify
from extproc.routing.features import measure
from extproc.routing.policy import Reason
from extproc.routing.request import Request
from extproc.rpc.call import RpcError
from extproc.rpc.connection import Connection
from extproc.rpc.limits import Limits
from extproc.server.learned.document import FORMAT, VERSION
from extproc.server.learned.document import decode as decode_document
from extproc.server.learned.document import encode as encode_document
from extproc.server.learned.store import UnreadableDocument
from extproc.server.observe.metrics import Metrics
from extproc.server.pools.vllm import parse_metrics, parse_models
from extproc.server.services.codec import UnknownMessageError, decode, decode_any
from extproc.server.services.ext_proc import PROCESS, ExtProcService
from extproc.wire import ext_proc_pb2 as pb

from ..server.in_force import make_in_force

ENCODINGS = ("gzip", "deflate", "br", "zstd", "gzip, br", "identity", "GZIP", "x")
LIMIT_BYTES = 1 << 20


def check_request(request: Request, body: bytes) -> None:
    """Check that the prompt is no larger than its body, and its numbers are counts."""
    prompt = request.prompt
    # Decoding shrinks escapes, but separators and the replacements of lone surrogates
    # may add bytes.
    assert len(prompt.text) <= 3 * len(body) + 64
    assert len(prompt.tools_text) <= 6 * len(body) + 64
    for count in (prompt.images, prompt.audios, prompt.files, prompt.token_ids):
        assert 0 <= count <= len(body)
    assert request.max_tokens is None or 0 <= request.max_tokens <= 1 << 31
    features = measure(prompt, request.body_bytes)
    assert classify(features) == classify(features)


def fuzz_body(data: bytes) -> None:
    """Parse a request body on every path of the API."""
    for path in ENDPOINTS:
        request = parse_request(path, data)
        if isinstance(request, Request):
            check_request(request, data)


def fuzz_encoding(data: bytes) -> None:
    """Parse a compressed body, whose decompressed size must stay within the limit."""
    if not data:
        return
    encoding = ENCODINGS[data[0] % len(ENCODINGS)]
    decoded = decode_content(data[1:], encoding, LIMIT_BYTES)
    assert decoded is None or len(decoded) <= LIMIT_BYTES
    read = BodyParser(
        ANY_PREFIX.find(DEFAULT_PATH), data[1:], encoding, LIMIT_BYTES
    ).finish()
    assert isinstance(read, Request | Reason)


def read_all(reader: UsageReader, chunks: list[bytes]) -> tuple[Usage, bytes]:
    passed = b"".join(reader.feed(chunk) for chunk in chunks)
    return reader.usage, passed + reader.finish()


def split(data: bytes) -> list[bytes]:
    """Split the bytes into pieces whose sizes are derived from the bytes."""
    chunks, at = [], 0
    largest = max(40, len(data) // 500)
    state = zlib.crc32(data)
    while at < len(data):
        state = (state * 1103515245 + 12345) & 0x7FFFFFFF
        size = 1 + state % largest
        chunks.append(data[at : at + size])
        at += size
    return chunks


def fuzz_usage(data: bytes) -> None:
    """Read a response; the split must not affect the usage, and no byte may be lost."""
    for kind in ("text/event-stream", "application/json"):
        whole, pieces = usage_reader(kind), usage_reader(kind)
        assert whole is not None
        assert pieces is not None
        usage, passed = read_all(whole, [data])
        usage_of_pieces, passed_in_pieces = read_all(pieces, split(data))
        assert passed == passed_in_pieces == data
        if len(data) < MAX_KEPT_BYTES:
            assert usage == usage_of_pieces
        for count in (usage.prompt_tokens, usage.completion_tokens):
            assert count is None or count >= 0


def fuzz_injection(data: bytes) -> None:
    """Read a stream with injected usage; the split must not affect the output."""
    asked = ask_for_usage(data)
    if asked is not None:
        try:
            wanted = json.loads(asked)
        except ValueError:
            pass
        else:
            assert wanted["stream_options"] == {"include_usage": True}
    whole = usage_reader("text/event-stream", drop_usage_chunk=True)
    pieces = usage_reader("text/event-stream", drop_usage_chunk=True)
    assert whole is not None
    assert pieces is not None
    passed = read_all(whole, [data])[1]
    assert read_all(pieces, split(data))[1] == passed
    assert len(passed) <= len(data)


def fuzz_codec(data: bytes) -> None:
    """Decode and handle one gRPC message."""
    try:
        decode(data, ExchangeSettings().headers_read)
        decode_any(data)
    except UnknownMessageError:
        return


_METRICS = Metrics()
_SERVICE = ExtProcService(
    make_in_force(
        settings=ExchangeSettings(max_body_bytes=2000, inject_usage=True),
        sampler=FeedbackSampler(1.0, adaptive=False),
    ),
    _METRICS,
)


def faults() -> float:
    return _METRICS.registry.get_sample_value("extproc_faults_total") or 0.0


_HEADERS = (
    *((":path", path) for path in list(ENDPOINTS)[:3]),
    (":path", "/other"),
    (":method", "POST"),
    (":method", "GET"),
    ("content-length", "300"),
    ("content-length", "999999"),
    ("content-encoding", "gzip"),
    ("content-encoding", "br"),
    ("x-llm-category", "code"),
    (":status", "200"),
    (":status", "500"),
    ("content-type", "text/event-stream"),
    ("content-type", "application/json"),
    ("x-envoy-attempt-count", "2"),
)


class Bytes:
    """A source of choices from the input; after the input's end it returns zeros."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    @property
    def left(self) -> int:
        return len(self._data) - self._at

    def number(self) -> int:
        return (self.take(1) or b"\0")[0]

    def take(self, size: int) -> bytes:
        taken = self._data[self._at : self._at + size]
        self._at += size
        return taken


def message_of(choices: Bytes) -> bytes:
    """Return an ext_proc message, or occasionally arbitrary bytes."""
    kind, flags = choices.number(), choices.number()
    end = bool(flags & 1)
    message = pb.ProcessingRequest()
    match kind % 8:
        case 0 | 1:
            phase = "request_headers" if kind % 8 == 0 else "response_headers"
            headers = getattr(message, phase)
            headers.end_of_stream = end
            for _ in range(flags >> 4):
                pick = choices.number()
                name, value = _HEADERS[pick % len(_HEADERS)]
                raw = choices.take(pick >> 5) if pick & 16 else value.encode()
                headers.headers.headers.add(key=name, raw_value=raw)
            mode = choices.number()
            message.protocol_config.request_body_mode = (
                mode % 6  # type: ignore[assignment]  # unknown values, too
            )
            message.protocol_config.response_body_mode = (
                mode // 8 % 6  # type: ignore[assignment]  # any number
            )
        case 2 | 3:
            body = message.request_body if kind % 8 == 2 else message.response_body
            body.body = choices.take(4 * choices.number())
            body.end_of_stream = end
        case 4:
            message.request_trailers.SetInParent()
        case 5:
            message.response_trailers.SetInParent()
        case _:
            return choices.take(choices.number())
    return message.SerializeToString()


def fuzz_exchange(data: bytes) -> None:
    """Run an exchange; each message must get a reply or end the stream without a
    fault.
    """
    choices = Bytes(data)
    before = faults()
    call = _SERVICE.open(PROCESS, {}, lambda messages, end=False: None)
    assert call is not None
    end = False
    try:
        while choices.left > 0 and not end:
            replies, end = call.receive(message_of(choices))
            for reply in replies:
                assert pb.ProcessingResponse.FromString(reply).WhichOneof("response")
    except RpcError:
        pass  # in full duplex, for messages that ext_proc lacks
    call.closed(cancelled=not end)
    assert faults() == before


def fuzz_document(data: bytes) -> None:
    """Decode stored state, both as it is and with a valid header in front."""
    for document in (data, sealed(data)):
        try:
            found = decode_document(document)
        except UnreadableDocument:
            continue
        assert decode_document(encode_document(found)) == found


def sealed(document: bytes) -> bytes:
    """Return a document with the right checksum, so that decoding reaches more code."""
    body = document.partition(b"\n")[2].removesuffix(b"\n")
    head = {"format": FORMAT, "version": VERSION, "crc32": zlib.crc32(body)}
    return json.dumps(head).encode() + b"\n" + body + b"\n"


def fuzz_vllm(data: bytes) -> None:
    """Parse the responses of a vLLM endpoint."""
    parse_metrics(data)
    parse_models(data)


class _Echo:
    def receive(self, message: bytes) -> tuple[list[bytes], bool]:
        return [message], False

    def half_closed(self) -> tuple[list[bytes], bool]:
        return [], True

    def closed(self, cancelled: bool) -> None:
        pass


class _EchoService:
    def open(self, path: str, headers: object, send: object) -> _Echo:
        return _Echo()


_LIMITS = Limits(
    max_concurrent_streams=3,
    max_message_bytes=1024,
    max_buffered_bytes=4096,
    max_queued_bytes=4096,
    max_lingering_streams=2,
)


def fuzz_http2(data: bytes) -> None:
    """Run a connection of the native transport."""
    reported: list[object] = []
    connection = Connection(
        _EchoService(),
        _LIMITS,
        lambda where, error: reported.append(error),
        lambda: None,
    )
    sent = 0
    for number, chunk in enumerate(split(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + data)):
        if connection.finished:
            break
        connection.receive(chunk, float(number))
        sent += len(connection.take())
    connection.lost()
    assert reported == []
    assert sent <= 200 * (len(data) + 100)


Target = Callable[[bytes], None]

TARGETS: dict[str, Target] = {
    "body": fuzz_body,
    "encoding": fuzz_encoding,
    "usage": fuzz_usage,
    "injection": fuzz_injection,
    "codec": fuzz_codec,
    "exchange": fuzz_exchange,
    "document": fuzz_document,
    "vllm": fuzz_vllm,
    "http2": fuzz_http2,
}
