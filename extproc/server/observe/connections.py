"""Connections to the gRPC port: metrics, and at most one log line a minute each."""

import logging
import time
from collections.abc import Callable
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge

from extproc.rpc.frames import ErrorCode

logger = logging.getLogger(__name__)

LOG_INTERVAL_S: Final = 60.0


class ConnectionMetrics:
    """Counts connections, and says what goes wrong with them.

    Only the native transport shows its connections.

    Args:
        registry: gets the metrics.
        clock: seconds that never jump.
    """

    def __init__(
        self,
        registry: CollectorRegistry,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._clock = clock
        self._logged_s: dict[str, float] = {}
        self._unlogged: dict[str, int] = {}
        self._open = Gauge(
            "extproc_connections",
            "Open connections to the gRPC port, from accept on (native)",
            registry=registry,
        )
        self._refused = Counter(
            "extproc_connections_refused_total",
            "Connections closed at once: too many, or no descriptors",
            registry=registry,
        )
        self._handshakes = Counter(
            "extproc_tls_handshakes_failed_total",
            "Connections whose TLS handshake failed, or did not agree on HTTP/2",
            registry=registry,
        )
        self._faults = Counter(
            "extproc_http2_faults_total",
            "Connections ended because the peer broke HTTP/2's rules, by error code",
            ["code"],
            registry=registry,
        )
        for each in ErrorCode:
            self._faults.labels(
                each.name.lower()
            )  # a rate needs the 0 before the first

    def opened(self) -> None:
        """Count a connection that has been accepted."""
        self._open.inc()

    def closed(self) -> None:
        """Count the end of one."""
        self._open.dec()

    def refused(self, reason: str) -> None:
        """Count a connection that was closed as soon as it was accepted."""
        self._refused.inc()
        self._log("connections_refused", reason)

    def handshake_failed(self, reason: str) -> None:
        """Count a connection whose TLS handshake failed, or was not for HTTP/2."""
        self._handshakes.inc()
        self._log("tls_handshakes_failed", reason)

    def faulted(self, code: str, reason: str) -> None:
        """Count a connection that ended because the peer broke HTTP/2's rules."""
        self._faults.labels(code).inc()
        self._log("connection_faults", f"{code}: {reason}")

    def _log(self, event: str, reason: str) -> None:
        """Log the first of a minute, and with it how many the last minute had."""
        count = self._unlogged[event] = self._unlogged.get(event, 0) + 1
        now_s, logged_s = self._clock(), self._logged_s.get(event)
        if logged_s is not None and now_s - logged_s < LOG_INTERVAL_S:
            return
        self._logged_s[event] = now_s
        self._unlogged[event] = 0
        fields = {"count": count, "last": reason}
        logger.warning(event, extra={"fields": fields})
