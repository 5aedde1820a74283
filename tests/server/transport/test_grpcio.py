import asyncio
import contextlib
import ctypes
import gc
import weakref
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path

import grpc
import pytest

from extproc.address import Address
from extproc.rpc.call import Call, Replies, RpcError, Send, StatusCode
from extproc.rpc.limits import Limits
from extproc.server.services.health import EXT_PROC, HealthStatuses, WithHealth
from extproc.server.transport.grpcio import GrpcioServer

LIMIT_S = 20.0
ANY_PORT = Address.parse("127.0.0.1:0")
METHOD = "/test.Test/Talk"


class Talk:
    """Answers each message as it says, and notes how it ended."""

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
                raise RpcError(StatusCode.INVALID_ARGUMENT, "no")
            case b"fault":
                raise ZeroDivisionError
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
    def __init__(self) -> None:
        self.closed: list[bool] = []
        self.talk: Talk
        self.ended = asyncio.Event()
        self.waiting = asyncio.Event()
        self.half_closed = asyncio.Event()

    def open(self, path: str, headers: Mapping[str, str], send: Send) -> Call | None:
        if path != METHOD:
            return None
        self.talk = Talk(self, send)
        return self.talk


def served(
    use: Callable[[grpc.aio.Channel, Service, GrpcioServer], Awaitable[None]],
    address: Address = ANY_PORT,
    *,
    max_message_bytes: int = 1024,
) -> list[bool]:
    """Run a test against a server; returns how its calls ended."""
    service = Service()

    async def run() -> None:
        statuses = HealthStatuses()
        statuses.set_all(True)
        limits = Limits(max_message_bytes=max_message_bytes)
        server = GrpcioServer(WithHealth(service, statuses), address, limits=limits)
        await server.start()
        port = server.port
        target = str(address) if port == 0 else f"127.0.0.1:{port}"
        async with grpc.aio.insecure_channel(target) as channel:
            async with asyncio.timeout(LIMIT_S):
                await use(channel, service, server)
        await server.drain(1.0)

    asyncio.run(run())
    return service.closed


def talk(channel: grpc.aio.Channel, path: str = METHOD) -> grpc.aio.StreamStreamCall:
    return channel.stream_stream(path)()


def test_each_message_is_answered_in_order() -> None:
    async def use(channel: grpc.aio.Channel, *_: object) -> None:
        call = talk(channel)
        for message, replies in ((b"a", [b"a"]), (b"two", [b"one", b"two"])):
            await call.write(message)
            assert [await call.read() for _ in replies] == replies
        await call.write(b"none")
        await call.write(b"b")
        assert await call.read() == b"b"
        await call.done_writing()
        assert await call.read() is grpc.aio.EOF
        assert await call.code() is grpc.StatusCode.OK

    assert served(use) == [False]


def test_the_server_may_end_the_stream() -> None:
    async def use(channel: grpc.aio.Channel, *_: object) -> None:
        call = talk(channel)
        await call.write(b"end")
        assert await call.read() == b"bye"
        assert await call.read() is grpc.aio.EOF
        assert await call.code() is grpc.StatusCode.OK

    assert served(use) == [False]


def test_a_stream_may_end_in_an_error_outside_of_an_answer() -> None:
    async def use(channel: grpc.aio.Channel, *_: object) -> None:
        call = talk(channel)
        await call.write(b"refuse later")
        assert await call.read() == b"well"
        assert await call.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert await call.details() == "no, after all"

    assert served(use) == [True]


@pytest.mark.parametrize("last", [b"end", b"refuse", b"refuse later"])
def test_nothing_keeps_a_call_that_has_ended(last: bytes) -> None:
    """What it knows of would stay, an old router and all, until a collection."""

    async def use(channel: grpc.aio.Channel, service: Service, *_: object) -> None:
        call = talk(channel)
        await call.write(last)
        with contextlib.suppress(grpc.aio.AioRpcError):
            while await call.read() is not grpc.aio.EOF:
                pass
        await service.ended.wait()
        ended = weakref.ref(service.talk)
        del service.talk
        async with asyncio.timeout(20):
            while ended() is not None:
                await asyncio.sleep(0)

    gc.disable()
    try:
        served(use)
    finally:
        gc.enable()


def test_a_client_that_goes_away_closes_its_call() -> None:
    async def use(channel: grpc.aio.Channel, service: Service, *_: object) -> None:
        call = talk(channel)
        await call.write(b"a")
        await call.read()
        call.cancel()
        async with asyncio.timeout(5):
            await service.ended.wait()

    assert len(served(use)) == 1  # gRPC may show a reset as the request's end


MALLINFO = (
    "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost"
)


class MallInfo(ctypes.Structure):
    _fields_ = tuple((name, ctypes.c_size_t) for name in MALLINFO.split())


def allocated_bytes() -> int:
    """What the C library's allocator has given out."""
    library = ctypes.CDLL(None)
    try:
        mallinfo = library.mallinfo2
    except AttributeError:
        pytest.skip("no mallinfo2: glibc before 2.33, or another C library")
    mallinfo.restype = MallInfo
    gc.collect()
    return int(mallinfo().uordblks)


@pytest.mark.slow
def test_what_a_reset_stream_held_is_given_back() -> None:
    """A read that is cancelled keeps 96 bytes for ever, in gRPC's library."""
    streams = 3000
    grown = 0

    async def use(channel: grpc.aio.Channel, service: Service, *_: object) -> None:
        async def reset(count: int) -> None:
            for _ in range(count):
                call = talk(channel)
                await call.write(b"a")
                await call.read()
                call.cancel()

        nonlocal grown
        await reset(500)
        before = allocated_bytes()
        await reset(streams)
        async with asyncio.timeout(5):
            while len(service.closed) < 500 + streams:
                await asyncio.sleep(0.01)
        grown = allocated_bytes() - before

    served(use)
    assert grown < 60 * streams


@pytest.mark.parametrize(
    ("message", "code"),
    [
        (b"refuse", grpc.StatusCode.INVALID_ARGUMENT),
        (b"x" * 2000, grpc.StatusCode.RESOURCE_EXHAUSTED),
    ],
)
def test_errors_end_the_stream_with_their_status(
    message: bytes, code: grpc.StatusCode
) -> None:
    async def use(channel: grpc.aio.Channel, *_: object) -> None:
        call = talk(channel)
        await call.write(message)
        assert await call.code() is code

    assert len(served(use)) == 1


LATE = [b"%d" % number for number in range(100)]


def test_what_is_sent_later_arrives_in_order_and_whole() -> None:
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
    assert talks[0].half_closed_times == 0  # it was closed by then


def test_the_end_of_the_client_s_side_waits_for_what_is_sent_later() -> None:
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


def test_what_is_sent_to_nobody_is_lost_without_a_word(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def use(channel: grpc.aio.Channel, service: Service, *_: object) -> None:
        call = talk(channel)
        await call.write(b"wait")
        await service.waiting.wait()
        call.cancel()
        await service.ended.wait()
        service.talk.send((b"too late",), True)

    assert served(use) == [True]
    gc.collect()  # where a task tells of an error that nobody took
    assert not caplog.records


def test_calls_that_would_outlive_a_drain_are_told_of_it() -> None:
    async def use(
        channel: grpc.aio.Channel, service: Service, server: GrpcioServer
    ) -> None:
        call = talk(channel)
        await call.write(b"wait")
        await service.waiting.wait()
        drained = asyncio.ensure_future(server.drain(10.0))
        assert await call.read() == b"draining"
        assert await call.code() is grpc.StatusCode.OK
        await drained

    assert served(use) == [False]


def test_an_unknown_method_is_not_implemented() -> None:
    async def use(channel: grpc.aio.Channel, *_: object) -> None:
        call = talk(channel, "/test.Test/Other")
        assert await call.code() is grpc.StatusCode.UNIMPLEMENTED

    assert served(use) == []


def test_a_unix_socket_is_listened_on(tmp_path: Path) -> None:
    async def use(channel: grpc.aio.Channel, *_: object) -> None:
        call = talk(channel)
        await call.write(b"a")
        assert await call.read() == b"a"

    served(use, Address(path=str(tmp_path / "socket")))


def test_draining_lets_open_streams_finish_and_refuses_new_ones() -> None:
    async def use(
        channel: grpc.aio.Channel, service: Service, server: GrpcioServer
    ) -> None:
        call = talk(channel)
        await call.write(b"a")
        await call.read()

        draining = asyncio.create_task(server.drain(5.0))
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


def test_draining_is_bounded() -> None:
    async def use(
        channel: grpc.aio.Channel, service: Service, server: GrpcioServer
    ) -> None:
        call = talk(channel)
        await call.write(b"a")
        await call.read()
        await server.drain(0.05)
        assert await call.code() is not grpc.StatusCode.OK

    assert len(served(use)) == 1


def test_health_is_served_beside_the_service() -> None:
    async def use(channel: grpc.aio.Channel, *_: object) -> None:
        check = channel.unary_unary("/grpc.health.v1.Health/Check")
        name = EXT_PROC.encode()
        assert await check(b"\x0a" + bytes([len(name)]) + name) == b"\x08\x01"

    served(use)


def test_an_address_in_use_is_an_error() -> None:
    async def run() -> None:
        first = GrpcioServer(Service(), ANY_PORT)
        await first.start()
        port = first.port
        second = GrpcioServer(Service(), Address("127.0.0.1", port))
        with pytest.raises(OSError, match="cannot listen"):
            await second.start()
        await first.drain(0)

    asyncio.run(run())
