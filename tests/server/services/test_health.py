import pytest
from grpc_health.v1 import health_pb2

from extproc.rpc.call import Call, Drainable, RpcError, StatusCode
from extproc.server.services.health import (
    EXT_PROC,
    SERVICE_NAMES,
    HealthService,
    HealthStatuses,
    WithHealth,
)

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
SERVICE_UNKNOWN = health_pb2.HealthCheckResponse.SERVICE_UNKNOWN


class Sent:
    """A ``send`` that records its arguments."""

    def __init__(self):
        self.statuses = []

    def __call__(self, messages, end=False):
        self.statuses += map(status_in, messages)


def status_in(message: bytes) -> int:
    return health_pb2.HealthCheckResponse.FromString(message).status


def question(name: str) -> bytes:
    return health_pb2.HealthCheckRequest(service=name).SerializeToString()


def opened(statuses: HealthStatuses, method: str, send=None) -> Call:
    path = f"/grpc.health.v1.Health/{method}"
    call = HealthService(statuses).open(path, {}, send or Sent())
    assert call is not None
    return call


@pytest.mark.parametrize("name", SERVICE_NAMES)
def test_check_answers_and_ends(name):
    statuses = HealthStatuses()
    for serving, expected in ((False, NOT_SERVING), (True, SERVING)):
        statuses.set(name, serving)
        (message,), ends = opened(statuses, "Check").receive(question(name))
        assert (status_in(message), ends) == (expected, True)


def test_check_of_an_unknown_name_is_not_found():
    with pytest.raises(RpcError) as raised:
        opened(HealthStatuses(), "Check").receive(question("no.such.Service"))
    assert raised.value.status is StatusCode.NOT_FOUND


@pytest.mark.parametrize("method", ["Check", "Watch"])
def test_a_request_that_is_none_is_invalid(method):
    call = opened(HealthStatuses(), method)
    for ask in (lambda: call.receive(b"\xff\xff"), call.half_closed):
        with pytest.raises(RpcError) as raised:
            ask()
        assert raised.value.status is StatusCode.INVALID_ARGUMENT
    call.closed(cancelled=True)


def test_watch_answers_at_once_and_at_each_change_until_closed():
    statuses, sent = HealthStatuses(), Sent()
    call = opened(statuses, "Watch", sent)
    (message,), ends = call.receive(question(EXT_PROC))
    assert (status_in(message), ends) == (NOT_SERVING, False)
    assert call.half_closed() == ((), False)
    for serving in (True, True, False):
        statuses.set(EXT_PROC, serving)
    statuses.set("", True)
    assert sent.statuses == [SERVING, NOT_SERVING]
    call.closed(cancelled=True)
    statuses.set(EXT_PROC, True)
    assert sent.statuses == [SERVING, NOT_SERVING]


def test_watch_of_an_unknown_name_waits_for_it():
    statuses, sent = HealthStatuses(), Sent()
    (message,), ends = opened(statuses, "Watch", sent).receive(question("later"))
    assert (status_in(message), ends) == (SERVICE_UNKNOWN, False)
    statuses.set("later", True)
    assert sent.statuses == [SERVING]


def test_watch_takes_one_question():
    call = opened(HealthStatuses(), "Watch")
    call.receive(question(""))
    with pytest.raises(RpcError):
        call.receive(question(""))


def test_watch_ends_when_the_server_drains():
    call = opened(HealthStatuses(), "Watch")
    assert isinstance(call, Drainable)
    assert call.drain() == ((), True)


def test_all_but_liveness_stop_serving():
    statuses = HealthStatuses()
    statuses.set_all(True)
    statuses.set_all(False, but=("liveness",))
    serving = {name for name in SERVICE_NAMES if statuses.get(name)}
    assert serving == {"liveness"}


def test_ending_a_watch_twice_is_ending_it_once():
    statuses, seen = HealthStatuses(), []
    unwatch = statuses.watch("", seen.append)
    statuses.watch("", seen.append)
    unwatch()
    unwatch()
    statuses.set("", True)
    assert seen == [True]


def test_health_stands_beside_the_service():
    class Nothing:
        def open(self, path, headers, send):
            return None

    both = WithHealth(Nothing(), HealthStatuses())
    assert both.open("/grpc.health.v1.Health/Check", {}, Sent()) is not None
    assert both.open("/grpc.health.v1.Health/List", {}, Sent()) is None
    assert both.open("/a.B/C", {}, Sent()) is None
