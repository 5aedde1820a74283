import logging

import pytest
from prometheus_client import CollectorRegistry

from extproc.server.observe.connections import LOG_INTERVAL_S, ConnectionMetrics


def test_connections_are_counted() -> None:
    registry = CollectorRegistry()
    metrics = ConnectionMetrics(registry)

    for _ in range(3):
        metrics.opened()
    metrics.closed()
    metrics.refused("limit")
    metrics.handshake_failed("no certificate")
    metrics.faulted("protocol_error", "PING on a stream")

    def value(name: str, **labels: str) -> float | None:
        return registry.get_sample_value(name, labels)

    assert value("extproc_connections") == 2
    assert value("extproc_connections_refused_total") == 1
    assert value("extproc_tls_handshakes_failed_total") == 1
    assert value("extproc_http2_faults_total", code="protocol_error") == 1


def test_a_flood_is_one_line_a_minute(caplog: pytest.LogCaptureFixture) -> None:
    now = 0.0
    metrics = ConnectionMetrics(CollectorRegistry(), lambda: now)

    with caplog.at_level(logging.WARNING):
        for _ in range(1000):
            metrics.refused("limit")
        metrics.handshake_failed("expired")
        now = LOG_INTERVAL_S
        metrics.refused("limit")

    assert [
        (each.getMessage(), each.__dict__["fields"]["count"]) for each in caplog.records
    ] == [
        ("connections_refused", 1),
        ("tls_handshakes_failed", 1),
        ("connections_refused", 1000),
    ]
