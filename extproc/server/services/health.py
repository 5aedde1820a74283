"""Registry of serving statuses, and the gRPC health service (grpc.health.v1).

The registry is independent of the transport; :class:`HealthService` is an ordinary
:class:`~extproc.rpc.call.Service`.
"""

from collections.abc import Callable, Mapping
from typing import Final

from google.protobuf.message import DecodeError
from grpc_health.v1 import health_pb2

from extproc.rpc.call import Call, Replies, RpcError, Send, Service, StatusCode

EXT_PROC: Final = "envoy.service.ext_proc.v3.ExternalProcessor"
SERVICE_NAMES: Final = ("", "liveness", "readiness", EXT_PROC)
HEALTH_PREFIX: Final = "/grpc.health.v1.Health/"

Watcher = Callable[[bool | None], None]
"""Function that receives a status, which is true if the service is serving and ``None``
if its name is unknown."""


class HealthStatuses:
    """Serving status by service name; initially no service is serving.

    Not thread-safe: use it from the event loop only.
    """

    def __init__(self) -> None:
        self._serving: dict[str, bool] = dict.fromkeys(SERVICE_NAMES, False)
        self._watchers: dict[str, dict[object, Watcher]] = {}

    def get(self, name: str) -> bool | None:
        """Return whether a service is serving; ``None`` if the name is unknown."""
        return self._serving.get(name)

    def set(self, name: str, serving: bool) -> None:
        """Set a service's status, and notify its watchers if it changed."""
        if self._serving.get(name) == serving:
            return
        self._serving[name] = serving
        for watcher in tuple(self._watchers.get(name, {}).values()):
            watcher(serving)

    def set_all(self, serving: bool, but: tuple[str, ...] = ()) -> None:
        """Set the status of all known services except those named in ``but``."""
        for name in tuple(self._serving):
            if name not in but:
                self.set(name, serving)

    def watch(self, name: str, watcher: Watcher) -> Callable[[], None]:
        """Call ``watcher`` on each change; return a function that stops these calls."""
        watchers = self._watchers.setdefault(name, {})
        key = object()
        watchers[key] = watcher

        def unwatch() -> None:
            watchers.pop(key, None)
            if not watchers and self._watchers.get(name) is watchers:
                del self._watchers[name]

        return unwatch


def _response(serving: bool | None) -> bytes:
    kinds = health_pb2.HealthCheckResponse
    if serving is None:
        status = kinds.SERVICE_UNKNOWN
    else:
        status = kinds.SERVING if serving else kinds.NOT_SERVING
    data: bytes = kinds(status=status).SerializeToString()
    return data


_RESPONSES: Final = {status: _response(status) for status in (True, False, None)}


def _asked_name(message: bytes) -> str:
    try:
        name: str = health_pb2.HealthCheckRequest.FromString(message).service
    except DecodeError:
        raise RpcError(
            StatusCode.INVALID_ARGUMENT, "not a HealthCheckRequest"
        ) from None
    return name


class HealthService:
    """Serves ``Check`` and ``Watch`` on a registry (grpc/doc/health-checking.md)."""

    def __init__(self, statuses: HealthStatuses) -> None:
        self._statuses = statuses

    def open(self, path: str, headers: Mapping[str, str], send: Send) -> Call | None:
        """Start a call of either method."""
        match path.removeprefix(HEALTH_PREFIX):
            case "Check":
                return _Check(self._statuses)
            case "Watch":
                return _Watch(self._statuses, send)
            case _:
                return None


class _Check:
    """A call of ``Check``, which ends with NOT_FOUND if the name is unknown."""

    def __init__(self, statuses: HealthStatuses) -> None:
        self._statuses = statuses

    def receive(self, message: bytes) -> Replies:
        name = _asked_name(message)
        serving = self._statuses.get(name)
        if serving is None:
            raise RpcError(StatusCode.NOT_FOUND, "unknown service")
        return (_RESPONSES[serving],), True

    def half_closed(self) -> Replies:
        raise RpcError(StatusCode.INVALID_ARGUMENT, "no request message")

    def closed(self, cancelled: bool) -> None:
        pass


class _Watch:
    """A call of ``Watch``, which sends the status at once and after each change."""

    def __init__(self, statuses: HealthStatuses, send: Send) -> None:
        self._statuses = statuses
        self._send = send
        self._unwatch: Callable[[], None] | None = None

    def receive(self, message: bytes) -> Replies:
        if self._unwatch is not None:
            raise RpcError(StatusCode.INVALID_ARGUMENT, "more than one request message")
        name = _asked_name(message)
        self._unwatch = self._statuses.watch(name, self._changed)
        return (_RESPONSES[self._statuses.get(name)],), False

    def half_closed(self) -> Replies:
        if self._unwatch is None:
            raise RpcError(StatusCode.INVALID_ARGUMENT, "no request message")
        return (), False

    def drain(self) -> Replies:
        """End the stream, so that the client watches another server."""
        return (), True

    def closed(self, cancelled: bool) -> None:
        if self._unwatch is not None:
            self._unwatch()

    def _changed(self, serving: bool | None) -> None:
        self._send((_RESPONSES[serving],))


class WithHealth:
    """Combines a service with the health service."""

    def __init__(self, service: Service, statuses: HealthStatuses) -> None:
        self._service = service
        self._health = HealthService(statuses)

    def open(self, path: str, headers: Mapping[str, str], send: Send) -> Call | None:
        """Start a call of either service."""
        if path.startswith(HEALTH_PREFIX):
            return self._health.open(path, headers, send)
        return self._service.open(path, headers, send)
