"""The server on real sockets: grpcio, nghttp2's tools and bare sockets as clients."""

import asyncio
import contextlib
import shutil
import socket
import ssl
import subprocess
from collections.abc import AsyncIterator, Callable, Coroutine
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from extproc.server.health import HealthStatuses
from extproc.server.limits import Limits
from extproc.server.native import (
    INTRODUCTION_S,
    LINGER_S,
    STALL_S,
    NativeServer,
    _Peer,
    new_event_loop,
    parse_address,
)

from .peers import TestService, framed

LOOPS = {"asyncio": asyncio.new_event_loop, "uvloop": new_event_loop}
TIMEOUT_S = 20
INTRODUCTION = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\4\0\0\0\0\0"


@pytest.fixture(params=LOOPS)
def run(request) -> Callable[[Coroutine], None]:
    """Run a test's coroutine on asyncio's loop and on uvloop."""

    def run(test: Coroutine) -> None:
        with asyncio.Runner(loop_factory=LOOPS[request.param]) as runner:
            runner.run(asyncio.wait_for(test, TIMEOUT_S))

    return run


@contextlib.asynccontextmanager
async def serving(
    address: str = "127.0.0.1:0", **options
) -> AsyncIterator[tuple[NativeServer, TestService, HealthStatuses]]:
    service, health = TestService(), HealthStatuses()
    server = NativeServer(service, health, address, linger_s=0.05, **options)
    await server.start()
    try:
        yield server, service, health
    finally:
        await server.drain(0)


@contextlib.asynccontextmanager
async def connected(server: NativeServer) -> AsyncIterator[grpc.aio.Channel]:
    """A channel that is closed after the server has drained: then drains are quick."""
    async with grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel:
        yield channel
        await server.drain(0)


async def until(condition: Callable[[], bool]) -> None:
    while not condition():
        await asyncio.sleep(0.001)


def stream(channel: grpc.aio.Channel, method: str, **options):
    return channel.stream_stream(f"/test.Test/{method}")(**options)


# ---- grpcio ---------------------------------------------------------------------------


def test_grpcio_streams(run):
    async def test():
        async with (
            serving() as (server, service, _),
            connected(server) as channel,
        ):
            call = stream(channel, "Echo")
            for message in (b"one", b"", b"x" * 300_000):
                await call.write(message)
                assert await call.read() == message
            await call.done_writing()
            assert await call.read() is grpc.aio.EOF
            assert await call.code() is grpc.StatusCode.OK
            assert service.calls[0].closed_with == [False]
            early = stream(channel, "Once", request_iterator=iter([b"q", b"r"]))
            assert [message async for message in early] == [b"q"]
            assert await early.code() is grpc.StatusCode.OK

    run(test())


def test_grpcio_many_calls_on_one_connection(run):
    async def test():
        async with (
            serving() as (server, service, _),
            connected(server) as channel,
        ):
            once = channel.unary_unary("/test.Test/Once")
            bodies = [b"%d" % n * (n * 40) for n in range(200)]
            assert await asyncio.gather(*map(once, bodies)) == bodies
            assert len(server.peers) == 1
            await until(lambda: server.open_calls == 0)
            assert [c.closed_with for c in service.calls] == [[False]] * 200

    run(test())


@pytest.mark.parametrize(
    ("method", "options", "code"),
    [
        ("/test.Test/Fail", {}, grpc.StatusCode.INTERNAL),
        ("/test.Test/Deny", {}, grpc.StatusCode.NOT_FOUND),
        ("/test.Test/FailEarly", {}, grpc.StatusCode.INTERNAL),
        ("/no.Such/Method", {}, grpc.StatusCode.UNIMPLEMENTED),
        ("/grpc.health.v1.Health/List", {}, grpc.StatusCode.UNIMPLEMENTED),
        ("/test.Test/Wait", {"timeout": 0.05}, grpc.StatusCode.DEADLINE_EXCEEDED),
        (
            "/test.Test/Once",
            {"compression": grpc.Compression.Gzip},
            grpc.StatusCode.UNIMPLEMENTED,
        ),
    ],
    ids=str,
)
@pytest.mark.filterwarnings(
    "ignore::UserWarning"
)  # grpcio: compression is experimental
def test_grpcio_sees_statuses(run, caplog, method, options, code):
    async def test():
        async with (
            serving() as (server, _, _),
            connected(server) as channel,
        ):
            with pytest.raises(grpc.aio.AioRpcError) as raised:
                await channel.unary_unary(method)(b"x" * 100, **options)
            assert raised.value.code() is code
            if code is grpc.StatusCode.NOT_FOUND:
                assert raised.value.details() == "no such thing: 100% gone é"

    run(test())
    failures = [record for record in caplog.records if record.levelname == "ERROR"]
    assert len(failures) == (code is grpc.StatusCode.INTERNAL)
    assert all(record.exc_info for record in failures)


def test_the_server_keeps_the_deadline_itself(run):
    """A client that announces a deadline and then does not keep it."""

    async def test():
        async with serving() as (server, service, _):
            reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
            timeout = b"\x00\x0cgrpc-timeout\x0320m"
            writer.write(INTRODUCTION + raw_request("Wait", 1, timeout))
            answer = b""
            while b"grpc-status" not in answer:
                answer += await reader.read(1000)
            assert b"grpc-status\x014" in answer
            assert service.calls[0].closed_with == [True]
            writer.close()

    run(test())


def test_a_cancelled_call_is_closed(run):
    async def test():
        async with (
            serving() as (server, service, _),
            connected(server) as channel,
        ):
            call = stream(channel, "Echo")
            await call.write(b"x")
            await call.read()
            call.cancel()
            await until(lambda: service.calls[0].closed_with == [True])

    run(test())


def raw_request(method: str, stream_id: int, *more: bytes) -> bytes:
    """A HEADERS frame that depends on no table; ``more`` are encoded headers."""
    path = f"/test.Test/{method}".encode()
    head = b"\x83\x86\x44" + bytes((len(path),)) + path
    head += b"\x5f\x10application/grpc" + b"".join(more)
    return bytes((0, 0, len(head), 1, 4, 0, 0, 0, stream_id)) + head


def test_a_lost_connection_closes_its_calls(run):
    async def test():
        async with serving() as (server, service, _):
            _, writer = await asyncio.open_connection("127.0.0.1", server.port)
            writer.write(INTRODUCTION + raw_request("Wait", 1) + raw_request("Wait", 3))
            await until(lambda: len(service.calls) == 2)
            writer.transport.abort()
            await until(lambda: not server.peers)
            assert [c.closed_with for c in service.calls] == [[True], [True]]

    run(test())


def test_health(run):
    async def test():
        async with (
            serving() as (server, _, health),
            connected(server) as channel,
        ):
            stub = health_pb2_grpc.HealthStub(channel)
            kinds = health_pb2.HealthCheckResponse
            asked = health_pb2.HealthCheckRequest(service="readiness")
            assert (await stub.Check(asked)).status == kinds.NOT_SERVING
            watch = stub.Watch(asked)
            assert (await watch.read()).status == kinds.NOT_SERVING
            health.set("readiness", True)
            assert (await watch.read()).status == kinds.SERVING
            assert (await stub.Check(asked)).status == kinds.SERVING
            with pytest.raises(grpc.aio.AioRpcError) as raised:
                await stub.Check(health_pb2.HealthCheckRequest(service="nobody"))
            assert raised.value.code() is grpc.StatusCode.NOT_FOUND
            health.set_all(False)
            assert (await watch.read()).status == kinds.NOT_SERVING
            drained = asyncio.ensure_future(server.drain(TIMEOUT_S))
            assert await watch.read() is grpc.aio.EOF
            await drained

    run(test())


# ---- addresses ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("address", "parsed"),
    [
        ("127.0.0.1:9002", ("tcp", "127.0.0.1", 9002)),
        ("router.local:0", ("tcp", "router.local", 0)),
        ("[::1]:9002", ("tcp", "::1", 9002)),
        (":9002", ("tcp", "", 9002)),
        ("unix:/run/a.sock", ("unix", "/run/a.sock", 0)),
        ("unix:///run/a.sock", ("unix", "/run/a.sock", 0)),
        ("unix:a.sock", ("unix", "a.sock", 0)),
    ],
)
def test_addresses(address, parsed):
    assert parse_address(address) == parsed


@pytest.mark.parametrize(
    "address", ["", "9002", "host", "host:", "host:port", "host:65536", "unix:"]
)
def test_what_is_no_address(address):
    with pytest.raises(ValueError, match="neither host:port nor unix:/path"):
        parse_address(address)


def test_a_unix_socket_is_served_and_removed(run, tmp_path):
    path = tmp_path / "router.sock"
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(path))

    async def test():
        async with serving(f"unix:{path}") as (server, _, _):
            assert server.port == 0
            async with grpc.aio.insecure_channel(f"unix:{path}") as channel:
                assert await channel.unary_unary("/test.Test/Once")(b"x") == b"x"
        assert not path.exists()

    run(test())


def test_a_unix_socket_of_a_successor_stays(run, tmp_path):
    path = tmp_path / "router.sock"

    async def test():
        async with serving(f"unix:{path}"):
            path.unlink()
            successor = NativeServer(TestService(), HealthStatuses(), f"unix:{path}")
            await successor.start()
        assert path.exists()
        async with grpc.aio.insecure_channel(f"unix:{path}") as channel:
            assert await channel.unary_unary("/test.Test/Once")(b"x") == b"x"
        await successor.drain(0)
        assert not path.exists()

    run(test())


def test_an_address_in_use_is_an_error(run):
    async def test():
        async with serving() as (server, _, _):
            other = NativeServer(
                TestService(), HealthStatuses(), f"127.0.0.1:{server.port}"
            )
            with pytest.raises(OSError, match="in use"):
                await other.start()

    run(test())


# ---- TLS ------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def certificate(tmp_path_factory) -> Path:
    """A key and a certificate of localhost, in one file."""
    if shutil.which("openssl") is None:
        pytest.skip("needs the openssl command to make a certificate")
    path = tmp_path_factory.mktemp("tls")
    key, cert = path / "key.pem", path / "cert.pem"
    made = subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "ec", "-nodes", "-days", "2"),
            *("-pkeyopt", "ec_paramgen_curve:prime256v1", "-subj", "/CN=localhost"),
            *("-addext", "subjectAltName=DNS:localhost"),
            *("-keyout", str(key), "-out", str(cert)),
        ],
        capture_output=True,
        check=False,
    )
    assert made.returncode == 0, made.stderr
    both = path / "both.pem"
    both.write_bytes(key.read_bytes() + cert.read_bytes())
    return both


def server_tls(certificate: Path) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    return context


def test_tls_with_grpcio(run, certificate):
    async def test():
        credentials = grpc.ssl_channel_credentials(certificate.read_bytes())
        options = [("grpc.ssl_target_name_override", "localhost")]
        async with (
            serving(ssl_context=server_tls(certificate)) as (server, _, _),
            grpc.aio.secure_channel(
                f"127.0.0.1:{server.port}", credentials, options
            ) as channel,
        ):
            once = channel.unary_unary("/test.Test/Once")
            for body in (b"x", b"y" * 500_000):
                assert await once(body) == body

    run(test())


def test_tls_without_alpn_is_cut_off(run, certificate):
    async def test():
        async with serving(ssl_context=server_tls(certificate)) as (server, _, _):
            context = ssl.create_default_context(cafile=certificate)
            reader, writer = await asyncio.open_connection(
                "127.0.0.1", server.port, ssl=context, server_hostname="localhost"
            )
            with contextlib.suppress(ConnectionError):
                assert await reader.read() == b""
            writer.close()
            assert not server.peers

    run(test())


# ---- nghttp2 --------------------------------------------------------------------------


async def output_of(*command: str) -> str:
    if shutil.which(command[0]) is None:
        pytest.skip(f"needs {command[0]} (Debian: nghttp2-client)")
    process = await asyncio.create_subprocess_exec(
        *command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    output, _ = await process.communicate()
    assert process.returncode == 0, output
    return output.decode()


def test_nghttp(run, tmp_path):
    (tmp_path / "body").write_bytes(framed(b"question" * 4_000))

    async def test():
        async with serving() as (server, service, _):
            output = await output_of(
                *("nghttp", "-v", "--no-dep", "--window-bits=10", "--padding=9"),
                *(
                    "-H:method: POST",
                    "-Hcontent-type: application/grpc",
                    "-Hte: trailers",
                ),
                *("-d", str(tmp_path / "body")),
                f"http://127.0.0.1:{server.port}/test.Test/Once",
            )
            assert ":status: 200" in output
            assert "grpc-status: 0" in output
            assert "[ERROR]" not in output
            assert service.calls[0].received == [b"question" * 4_000]

    run(test())


def test_h2load(run, tmp_path):
    (tmp_path / "body").write_bytes(framed(b"question" * 500))

    async def test():
        async with serving() as (server, service, _):
            output = await output_of(
                *("h2load", "-n", "400", "-c", "4", "-m", "25", "-t", "1"),
                *("-H", "content-type: application/grpc", "-d", str(tmp_path / "body")),
                f"http://127.0.0.1:{server.port}/test.Test/Once",
            )
            assert "400 succeeded, 0 failed, 0 errored" in output
            assert [call.closed_with for call in service.calls] == [[False]] * 400

    run(test())


# ---- drain ----------------------------------------------------------------------------


def test_drain_waits_for_open_calls(run):
    async def test():
        async with (
            serving() as (server, service, _),
            connected(server) as channel,
        ):
            call = stream(channel, "Echo")
            await call.write(b"before")
            assert await call.read() == b"before"
            drained = asyncio.ensure_future(server.drain(TIMEOUT_S))
            await call.write(b"while draining")
            assert await call.read() == b"while draining"
            assert not drained.done()
            with pytest.raises(ConnectionError):
                await asyncio.open_connection("127.0.0.1", server.port or 1)
            await call.done_writing()
            assert await call.code() is grpc.StatusCode.OK
            await drained
            assert not server.peers
            assert service.calls[0].closed_with == [False]

    run(test())


def test_drain_ends_calls_that_go_on(run):
    async def test():
        async with (
            serving() as (server, service, _),
            connected(server) as channel,
        ):
            call = stream(channel, "Wait")
            await call.write(b"x")
            await until(lambda: bool(service.calls and service.calls[0].received))
            await server.drain(0.01)
            assert await call.code() is grpc.StatusCode.UNAVAILABLE
            assert await call.details() == "the server is shutting down"
            assert service.calls[0].closed_with == [True]
            assert not server.peers

    run(test())


def test_drain_cuts_off_a_client_that_does_not_answer(run):
    async def test():
        async with serving() as (server, _, _):
            _, writer = await asyncio.open_connection("127.0.0.1", server.port)
            await until(lambda: len(server.peers) == 1)
            await server.drain(0.01)
            assert not server.peers
            writer.close()

    run(test())


def test_connections_over_the_limit_are_closed(run):
    async def test():
        async with serving(max_connections=1) as (server, _, _):
            reader, first = await asyncio.open_connection("127.0.0.1", server.port)
            await reader.readexactly(9)
            reader, second = await asyncio.open_connection("127.0.0.1", server.port)
            with contextlib.suppress(ConnectionError):
                assert await reader.read() == b""
            assert len(server.peers) == 1
            first.close()
            second.close()

    run(test())


# ---- one connection, with a transport and a loop that do as they are told ---------------


class FakeLoop:
    """Timers that fire when told to."""

    def __init__(self):
        self.now = 0.0
        self.timers = []

    def time(self):
        return self.now

    def call_later(self, delay, callback):
        return self.call_at(self.now + delay, callback)

    def call_at(self, when, callback):
        timer = FakeTimer(when, callback)
        self.timers.append(timer)
        return timer

    def pass_time(self, seconds):
        self.now += seconds
        for timer in [timer for timer in self.timers if timer.when <= self.now]:
            self.timers.remove(timer)
            if not timer.cancelled:
                timer.callback()


class FakeTimer:
    def __init__(self, when, callback):
        self.when, self.callback, self.cancelled = when, callback, False

    def cancel(self):
        self.cancelled = True


class FakeTransport:
    def __init__(self):
        self.did = []
        self.written = b""

    def __getattr__(self, name):
        return lambda *_: self.did.append(name)

    def write(self, octets):
        self.written += octets

    def get_extra_info(self, name):
        return None


class FakePeer:
    def __init__(self):
        self.server = NativeServer(TestService(), HealthStatuses(), ":0")
        self.loop, self.transport = FakeLoop(), FakeTransport()
        self.peer = _Peer(self.server, self.loop)
        self.peer.connection_made(self.transport)

    def feed(self, octets: bytes) -> bytes:
        self.transport.written = b""
        self.peer.get_buffer(-1)[: len(octets)] = octets
        self.peer.buffer_updated(len(octets))
        return self.transport.written

    def introduce(self):
        self.feed(INTRODUCTION)


def test_a_peer_that_does_not_introduce_itself_is_cut_off():
    fake = FakePeer()
    fake.feed(b"PRI * HTTP/2.0\r\n")
    fake.loop.pass_time(INTRODUCTION_S - 1)
    assert fake.transport.did == []
    fake.loop.pass_time(1)
    assert fake.transport.did == ["abort"]
    patient = FakePeer()
    patient.introduce()
    patient.loop.pass_time(10 * INTRODUCTION_S)
    assert patient.transport.did == []


def test_a_peer_that_does_not_read_is_not_read_from_and_then_cut_off():
    fake = FakePeer()
    fake.introduce()
    fake.peer.pause_writing()
    fake.peer.resume_writing()
    assert fake.transport.did == ["pause_reading", "resume_reading"]
    fake.loop.pass_time(2 * STALL_S)
    fake.peer.pause_writing()
    fake.loop.pass_time(STALL_S - 1)
    assert fake.transport.did[2:] == ["pause_reading"]
    fake.loop.pass_time(1)
    assert fake.transport.did[3:] == ["abort"]


def test_after_a_fault_the_peer_is_given_time_to_read_why(caplog):
    fake = FakePeer()
    fake.introduce()
    assert b"\7" in fake.feed(b"\0\0\x08\6\0\0\0\0\1" + bytes(8))
    assert fake.feed(b"still sending") == b""
    assert fake.transport.did == []
    fake.loop.pass_time(LINGER_S)
    assert fake.transport.did == ["close"]
    fake.loop.pass_time(STALL_S)
    assert fake.transport.did == ["close", "abort"], "it does not read"
    fake.peer.connection_lost(None)
    assert not fake.server.peers
    (record,) = caplog.records
    message = "connection_fault peer=None PROTOCOL_ERROR: PING on a stream"
    assert record.getMessage() == message


def test_one_read_is_answered_with_one_write():
    fake = FakePeer()
    writes = []
    fake.transport.write = writes.append
    octets = INTRODUCTION
    for n in (1, 3, 5):
        octets += raw_request("Echo", n)
        octets += b"\0\0\6\0\1\0\0\0" + bytes((n,)) + framed(b"x")
    fake.feed(octets)
    assert len(writes) == 1
    assert writes[0].count(b"grpc-status\x010") == 3


def test_a_call_that_sends_later_is_flushed_at_once(run):
    async def test():
        async with (
            serving() as (server, service, _),
            connected(server) as channel,
        ):
            call = stream(channel, "Wait")
            await call.write(b"x")
            await until(lambda: bool(service.calls and service.calls[0].received))
            service.calls[0].send((b"thought it over",), True)
            assert await call.read() == b"thought it over"
            assert await call.code() is grpc.StatusCode.OK

    run(test())


def test_limits_reach_the_wire(run):
    async def test():
        limits = Limits(max_concurrent_streams=7, max_message_bytes=1024)
        async with (
            serving(limits=limits) as (server, _, _),
            connected(server) as channel,
        ):
            with pytest.raises(grpc.aio.AioRpcError) as raised:
                await channel.unary_unary("/test.Test/Once")(b"x" * 1025)
            assert raised.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
            assert "exceeds 1024" in raised.value.details()

    run(test())
