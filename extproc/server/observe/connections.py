"""Metrics of connections to the gRPC port, and one log line a minute per event type."""

import logging
import time
from collections.abc import Callable
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge

from extproc.rpc.frames import ErrorCode

logger = logging.getLogger(__name__)

LOG_INTERVAL_S: Final = 60.0


class ConnectionMetrics:
    """Counts connections and logs their failures.

    Only the native transport reports its connections.

    Args:
        registry: registry to add the metrics to.
        clock: monotonic clock in seconds.
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
            "Open connections to the gRPC port, counted from accept (native transport)",
            registry=registry,
        )
        self._refused = Counter(
            "extproc_connections_refused_total",
            "Connections closed on accept: too many, or no file descriptors left",
            registry=registry,
        )
        self._handshakes = Counter(
            "extproc_tls_handshakes_failed_total",
            "Connections that failed the TLS handshake or did not negotiate HTTP/2",
            registry=registry,
        )
        self._faults = Counter(
            "extproc_http2_faults_total",
            "Connections ended by an HTTP/2 protocol error of the peer, by error code",
            ["code"],
            registry=registry,
        )
        # A rate can be computed only if there is a sample of 0 before the first event.
        for each in ErrorCode:
            self._faults.labels(each.name.lower())

    def opened(self) -> None:
        """Count an accepted connection."""
        self._open.inc()

    def closed(self) -> None:
        """Count the end of a connection."""
        self._open.dec()

    def refused(self, reason: str) -> None:
        """Count a connection that was closed as soon as it was accepted."""
        self._refused.inc()
        self._log("connections_refused", reason)

    def handshake_failed(self, reason: str) -> None:
        """Count a TLS handshake that failed or did not negotiate HTTP/2."""
        self._handshakes.inc()
        self._log("tls_handshakes_failed", reason)

    def faulted(self, code: str, reason: str) -> None:
        """Count a connection ended by an HTTP/2 protocol error of the peer."""
        self._faults.labels(code).inc()
        self._log("connection_faults", f"{code}: {reason}")

    def _log(self, event: str, reason: str) -> None:
        """Log the first event in a minute, with the count of the previous minute."""
        count = self._unlogged[event] = self._unlogged.get(event, 0) + 1
        now_s, logged_s = self._clock(), self._logged_s.get(event)
        if logged_s is not None and now_s - logged_s < LOG_INTERVAL_S:
            return
        self._logged_s[event] = now_s
        self._unlogged[event] = 0
        fields = {"count": count, "last": reason}
        logger.warning(event, extra={"fields": fields})
