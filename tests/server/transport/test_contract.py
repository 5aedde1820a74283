"""The common behavior of both transports, in one suite that runs on each.

The native transport runs on both event loops. test_native.py covers what only the
native transport supports.
"""

import asyncio
import contextlib
import ctypes
import gc
import logging
import weakref
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from extproc.address import Address
from extproc.rpc.call import Call, Replies, RpcError, Send, StatusCode
from extproc.rpc.limits import Limits
from extproc.server.services.health import HealthStatuses, WithHealth
from extproc.server.transport.choose import Transport
from extproc.server.transport.grpcio import GrpcioServer
from extproc.server.transport.native import NativeServer

from ..conftest import LOOPS

LIMIT_S = 60.0
"""Timeout in seconds for a test that hangs, even on a slow machine."""
METHOD = "/test.Test/Talk"
ANY_PORT = Address.parse("127.0.0.1:0")
LIMITS = Limits(max_message_bytes=1 << 20)
RUNS = [("native", "asyncio"), ("native", "uvloop"), ("grpcio", "asyncio")]


class Talk:
    """A call that does what each message says, and records how the call ends."""

    def __init__(self, service: "Service", send: Send) -> None:
        self._service = service
        self.send = send
        self.waits = False
        self.half_closed_times = 0

    def receive(self, message: bytes) -> Replies:
        match message:
            case b"two":
                return (b"one", b"two"), False
            case b"none":
                return (), False
            case b"wait":
                self.waits = True
                self._service.waiting.set()
                return (), False
            case b"end":
                return (b"bye",), True
            case b"refuse later":
                error = RpcError(StatusCode.INVALID_ARGUMENT, "no, after all")
                asyncio.get_running_loop().call_soon(self.send, (b"well",), error)
                return (), False
            case b"refuse":
                raise RpcError(StatusCode.NOT_FOUND, "no such thing: 100% gone é")
            case b"fault":
                raise ZeroDivisionError("secret")
        return (message,), False

    def half_closed(self) -> Replies:
        self.half_closed_times += 1
        self._service.half_closed.set()
        return (), not self.waits

    def drain(self) -> Replies:
        return ((b"draining",), True) if self.waits else ((), False)

    def closed(self, cancelled: bool) -> None:
        self._service.closed.append(cancelled)
        self._service.ended.set()


class Service:
    """A service that opens ``Talk`` calls; its other methods fail as their names say."""

    def __init__(self) -> None:
        self.closed: list[bool] = []
        self.metadata: list[Mapping[str, str]] = []
        self.talk: Talk
        self.ended = asyncio.Event()
        self.waiting = asyncio.Event()
        self.half_closed = asyncio.Event()

    def open(self, path: str, headers: Mapping[str, str], send: Send) -> Call | None:
        match path.rpartition("/")[2]:
            case "Fault":
                raise ZeroDivisionError("secret")
            case "Refuse":
                raise RpcError(StatusCode.UNAVAILABLE, "not now")
            case "Talk":
                self.metadata.append(headers)
                self.talk = Talk(self, send)
                return self.talk
        return None


Use = Callable[[grpc.aio.Channel, Service, Transport], Awaitable[None]]


class Serve(Protocol):
    """A function that runs a test against a server and returns how its calls ended."""

    def __call__(
        self,
        use: Use,
        address: Address = ANY_PORT,
        statuses: HealthStatuses | None = None,
    ) -> list[bool]: ...


def make_server(transport: str, service: Any, address: Address) -> Transport:
    if transport == "native":
        return NativeServer(service, address, limits=LIMITS, linger_s=0.05)
    return GrpcioServer(service, address, limits=LIMITS)


@pytest.fixture(params=RUNS, ids="-".join)
def run(request: pytest.FixtureRequest) -> tuple[str, str]:
    chosen: tuple[str, str] = request.param
    return chosen


@pytest.fixture
def served(run: tuple[str, str]) -> Serve:
    transport, loop = run

    def serve(
        use: Use,
        address: Address = ANY_PORT,
        statuses: HealthStatuses | None = None,
    ) -> list[bool]:
        async def test() -> list[bool]:
            service = Service()
            both = WithHealth(service, statuses or HealthStatuses())
            server = make_server(transport, both, address)
            await server.start()
            target = str(address.with_port(server.port))
            async with grpc.aio.insecure_channel(target) as channel:
                await use(channel, service, server)
                await server.drain(0)
            return service.closed

        with asyncio.Runner(loop_factory=LOOPS[loop]) as runner:
            return runner.run(asyncio.wait_for(test(), LIMIT_S))

    return serve


def talk(
    channel: grpc.aio.Channel, path: str = METHOD, **options: Any
) -> grpc.aio.StreamStreamCall:
    return channel.stream_stream(path)(**options)


def logged(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Return log messages, except those of grpcio's poller, which outlives its loop."""
    messages = [record.getMessage() for record in caplog.records]
    return [each for each in messages if "PollerCompletionQueue" not in each]


async def until(condition: Callable[[], bool]) -> None:
    while not condition():
        await asyncio.sleep(0.001)


# ---- messages and ends ---------------------------------------------------------------


def test_each_message_is_answered_in_order(served: Serve) -> None:
    async def use(channel: grpc.aio.Channel, *_: object) -> None:
        call = talk(channel)
        for message, replies in (
            (b"a", [b"a"]),
            (b"two", [b"one", b"two"]),
            (b"", [b""]),
            (b"x" * 300_000, [b"x" * 300_000]),
        ):
            await call.write(message)
            assert [await call.read() for _ in replies] == replies
        await call.write(b"none")
        await call.write(b"b")
        assert await call.read() == b"b"
        await call.done_writing()
        assert await call.read() is grpc.aio.EOF
        assert await call.code() is grpc.StatusCode.OK

    assert served(use) == [False]


def test_many_calls_go_on_at_once(served: Serve) -> None:
    bodies = [b"%d" % n * (n * 40) for n in range(1, 100)]

    async def use(channel: grpc.aio.Channel, *_: object) -> None:
        async def echoed(body: bytes) -> Any:
            call = talk(channel)
            await call.write(body)
            answer = await call.read()
            await call.done_writing()
            assert await call.code() is grpc.StatusCode.OK
            return answer

        assert await asyncio.gather(*map(echoed, bodies)) == bodies

    assert served(use) == [False] * len(bodies)


def test_the_server_may_end_the_stream(served: Serve) -> None:
    async def use(channel: grpc.aio.Channel, *_: object) -> None:
        call = talk(channel)
        await call.write(b"end")
        assert await call.read() == b"bye"
        assert await call.read() is grpc.aio.EOF
        assert await call.code() is grpc.StatusCode.OK

    assert served(use) == [False]


def test_metadata_reaches_the_call(served: Serve) -> None:
    async def use(channel: grpc.aio.Channel, service: Service, *_: object) -> None:
        large = "x" * 12_000
        sent = [("x-one", "1"), ("x-two", "2"), ("x-large", large)]
        call = talk(channel, metadata=sent)
        await call.write(b"end")
        assert await call.read() == b"bye"
        (headers,) = service.metadata
        assert dict(sent).items() <= dict(headers).items()

    served(use)


def test_a_stream_may_end_in_an_error_outside_of_an_answer(served: Serve) -> None:
    async def use(channel: grpc.aio.Channel, *_: object) -> None:
        call = talk(channel)
        await call.write(b"refuse later")
        assert await call.read() == b"well"
        assert await call.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert await call.details() == "no, after all"

    assert served(use) == [True]


# ---- errors --------------------------------------------------------------------------

Status = grpc.StatusCode


@pytest.mark.parametrize(
    ("method", "message", "code", "details"),
    [
        ("Talk", b"refuse", Status.NOT_FOUND, "no such thing: 100% gone é"),
        ("Talk", b"fault", Status.INTERNAL, "internal error"),
        ("Fault", b"x", Status.INTERNAL, "internal error"),
        ("Refuse", b"x", Status.UNAVAILABLE, "not now"),
        ("Other", b"x", Status.UNIMPLEMENTED, "unknown method /test.Test/Other"),
        ("Talk", b"x" * ((1 << 20) + 1), Status.RESOURCE_EXHAUSTED, None),
    ],
    ids=lambda value: "" if isinstance(value, bytes) else str(value),
)
def test_errors_end_the_stream_with_their_status(
    served: Serve,
    caplog: pytest.LogCaptureFixture,
    method: str,
    message: bytes,
    code: grpc.StatusCode,
    details: str | None,
) -> None:
    async def use(channel: grpc.aio.Channel, *_: object) -> None:
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await channel.unary_unary(f"/test.Test/{method}")(message)
        assert raised.value.code() is code
        assert details in (None, raised.value.details())

    with caplog.at_level(logging.ERROR):
        assert served(use) == [True] * (method == "Talk")
    assert logged(caplog) == ["call_failed"] * (code is Status.INTERNAL)


def test_a_deadline_ends_the_stream(served: Serve) -> None:
    async def use(channel: grpc.aio.Channel, service: Service, *_: object) -> None:
        waits = iter([b"wait"])
        call = talk(channel, timeout=0.05, request_iterator=waits)
        assert await call.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        # The client's deadline may end the call before the server receives the call.
        await until(lambda: len(service.closed) == len(service.metadata))

    assert False not in served(use)


# ---- clients that go away ------------------------------------------------------------


def test_a_client_that_goes_away_closes_its_call(served: Serve) -> None:
    async def use(channel: grpc.aio.Channel, service: Service, *_: object) -> None:
        call = talk(channel)
        await call.write(b"wait")  # otherwise gRPC's reset would look like a half-close
        await service.waiting.wait()
        call.cancel()
        await service.ended.wait()

    assert served(use) == [True]


@pytest.mark.parametrize("last", [b"end", b"refuse", b"refuse later", b"fault"])
def test_nothing_keeps_a_call_that_has_ended(served: Serve, last: bytes) -> None:
    """Objects that a call references, even an old router, would stay in memory until
    the next garbage collection.
    """

    async def use(channel: grpc.aio.Channel, service: Service, *_: object) -> None:
        call = talk(channel)
        await call.write(last)
        with contextlib.suppress(grpc.aio.AioRpcError):
            while await call.read() is not grpc.aio.EOF:
                pass
        await service.ended.wait()
        ended = weakref.ref(service.talk)
        del service.talk
        await until(lambda: ended() is None)

    logging.disable()  # a log record of an exception retains its traceback
    gc.disable()
    try:
        served(use)
    finally:
        gc.enable()
        logging.disable(logging.NOTSET)


MALLINFO = (
    "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost"
)


class MallInfo(ctypes.Structure):
    _fields_ = tuple((name, ctypes.c_size_t) for name in MALLINFO.split())


def allocated_bytes() -> int:
    """Return the bytes that the C library has allocated."""
    library = ctypes.CDLL(None)
    try:
        mallinfo = library.mallinfo2
    except AttributeError:
        pytest.skip("no mallinfo2: glibc before 2.33, or another C library")
    mallinfo.restype = MallInfo
    gc.collect()
    return int(mallinfo().uordblks)


@pytest.mark.slow
def test_what_a_reset_stream_held_is_given_back(served: Serve) -> None:
    """In gRPC's own library, a canceled read leaks 96 bytes."""
    streams = 3000
    grown = 0

    async def use(channel: grpc.aio.Channel, service: Service, *_: object) -> None:
        async def reset(count: int) -> None:
            closed = len(service.closed)
            for _ in range(count):
                call = talk(channel)
                await call.write(b"a")
                await call.read()
                call.cancel()
            await until(lambda: len(service.closed) == closed + count)

        nonlocal grown
        await reset(500)
        before = allocated_bytes()
        await reset(streams)
        grown = allocated_bytes() - before

    served(use)
    assert grown < 60 * streams


# ---- late replies --------------------------------------------------------------------

LATE = [b"%d" % number for number in range(100)]


def test_late_replies_arrive_in_order_and_whole(served: Serve) -> None:
    async def use(channel: grpc.aio.Channel, service: Service, *_: object) -> None:
        call = talk(channel)
        await call.write(b"wait")
        await service.waiting.wait()
        for message in LATE:
            service.talk.send((message,))
        service.talk.send((), True)
        assert [await call.read() for _ in LATE] == LATE
        assert await call.read() is grpc.aio.EOF
        assert await call.code() is grpc.StatusCode.OK
        talks.append(service.talk)

    talks: list[Talk] = []
    assert served(use) == [False]
    assert talks[0].half_closed_times == 0  # the stream was already closed


def test_the_end_of_the_client_s_side_waits_for_late_replies(served: Serve) -> None:
    async def use(channel: grpc.aio.Channel, service: Service, *_: object) -> None:
        call = talk(channel)
        await call.write(b"wait")
        await call.done_writing()
        await service.half_closed.wait()
        service.talk.send((b"here",), True)
        assert await call.read() == b"here"
        assert await call.code() is grpc.StatusCode.OK
        assert service.talk.half_closed_times == 1

    assert served(use) == [False]


def test_replies_to_a_client_that_has_gone_are_dropped_silently(
    served: Serve, caplog: pytest.LogCaptureFixture
) -> None:
    async def use(channel: grpc.aio.Channel, service: Service, *_: object) -> None:
        call = talk(channel)
        await call.write(b"wait")
        await service.waiting.wait()
        call.cancel()
        await service.ended.wait()
        service.talk.send((b"too late",), True)

    assert served(use) == [True]
    gc.collect()  # a task now reports exceptions that were never retrieved
    assert not logged(caplog)


# ---- draining ------------------------------------------------------------------------


def test_calls_that_would_outlive_a_drain_are_asked_to_end(served: Serve) -> None:
    async def use(
        channel: grpc.aio.Channel, service: Service, server: Transport
    ) -> None:
        call = talk(channel)
        await call.write(b"wait")
        await service.waiting.wait()
        drained = asyncio.ensure_future(server.drain(LIMIT_S))
        assert await call.read() == b"draining"
        assert await call.code() is grpc.StatusCode.OK
        await drained

    assert served(use) == [False]


def test_draining_lets_open_streams_finish_and_refuses_new_ones(served: Serve) -> None:
    async def use(
        channel: grpc.aio.Channel, service: Service, server: Transport
    ) -> None:
        call = talk(channel)
        await call.write(b"a")
        await call.read()

        draining = asyncio.create_task(server.drain(LIMIT_S))
        await call.write(b"b")
        assert await call.read() == b"b"
        assert not draining.done()
        await call.write(b"end")
        assert await call.read() == b"bye"

        assert await call.code() is grpc.StatusCode.OK
        await draining
        late = talk(channel)
        assert await late.code() is grpc.StatusCode.UNAVAILABLE

    assert served(use) == [False]


def test_draining_is_bounded(served: Serve) -> None:
    async def use(
        channel: grpc.aio.Channel, service: Service, server: Transport
    ) -> None:
        call = talk(channel)
        await call.write(b"a")
        await call.read()
        await server.drain(0.05)
        assert await call.code() is not grpc.StatusCode.OK
        await service.ended.wait()

    assert served(use) == [True]


# ---- health --------------------------------------------------------------------------


def test_health_is_served_beside_the_service(served: Serve) -> None:
    statuses = HealthStatuses()
    kinds = health_pb2.HealthCheckResponse

    async def use(
        channel: grpc.aio.Channel, service: Service, server: Transport
    ) -> None:
        stub = health_pb2_grpc.HealthStub(channel)
        request = health_pb2.HealthCheckRequest(service="readiness")
        assert (await stub.Check(request)).status == kinds.NOT_SERVING
        watch = stub.Watch(request)
        assert (await watch.read()).status == kinds.NOT_SERVING
        statuses.set("readiness", True)
        assert (await watch.read()).status == kinds.SERVING
        assert (await stub.Check(request)).status == kinds.SERVING
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await stub.Check(health_pb2.HealthCheckRequest(service="nobody"))
        assert raised.value.code() is grpc.StatusCode.NOT_FOUND
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await channel.unary_unary("/grpc.health.v1.Health/List")(b"")
        assert raised.value.code() is grpc.StatusCode.UNIMPLEMENTED
        statuses.set_all(False)
        assert (await watch.read()).status == kinds.NOT_SERVING
        drained = asyncio.ensure_future(server.drain(LIMIT_S))
        assert await watch.read() is grpc.aio.EOF
        await drained

    served(use, statuses=statuses)


# ---- addresses -----------------------------------------------------------------------


def test_a_unix_socket_is_listened_on(served: Serve, tmp_path: Path) -> None:
    async def use(
        channel: grpc.aio.Channel, service: Service, server: Transport
    ) -> None:
        assert server.port == 0
        call = talk(channel)
        await call.write(b"a")
        assert await call.read() == b"a"

    served(use, Address(path=str(tmp_path / "socket")))


def test_an_address_in_use_is_an_error(served: Serve, run: tuple[str, str]) -> None:
    async def use(
        channel: grpc.aio.Channel, service: Service, server: Transport
    ) -> None:
        address = ANY_PORT.with_port(server.port)
        reason = ": Address already in use" if run[0] == "native" else ""
        second = make_server(run[0], service, address)
        with pytest.raises(OSError, match=f"cannot listen on {address}{reason}"):
            await second.start()

    served(use)
