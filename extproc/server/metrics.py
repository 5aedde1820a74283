"""Every Prometheus metric, in one place; the facts come from ``service``.

Labels are from closed sets: pools and categories of the configuration, reasons of
the code. Never a model name, a path or anything else that a client chooses.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

import extproc
from extproc.exchange.events import Observation
from extproc.routing.router import Decision, Lesson

_TOKEN_BUCKETS = tuple(2.0**power for power in range(6, 18))
_ERROR_BUCKETS = (
    -0.5,
    -0.3,
    -0.2,
    -0.1,
    -0.05,
    -0.02,
    0,
    0.02,
    0.05,
    0.1,
    0.2,
    0.3,
    0.5,
    1,
    2,
)
_LATENCY_BUCKETS = (5e-5, 1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 5e-2)


class _Ratios(Collector):
    """Reads the learned ratios when scraped: nothing to do a request."""

    def __init__(self, ratios: Callable[[], Mapping[str, float]]) -> None:
        self._ratios = ratios

    def collect(self) -> list[GaugeMetricFamily]:
        """One sample a category that has learned."""
        family = GaugeMetricFamily(
            "extproc_bytes_per_token",
            "Learned bytes of decoded text per token, by category",
            labels=["category"],
        )
        for category, ratio in sorted(self._ratios().items()):
            family.add_metric([category], ratio)
        return [family]


class Metrics:
    """The server's metrics, in a registry of their own."""

    def __init__(self, ratios: Callable[[], Mapping[str, float]]) -> None:
        self.registry = CollectorRegistry()
        self.registry.register(_Ratios(ratios))
        self.decisions = Counter(
            "extproc_decisions_total",
            "Requests routed",
            ["pool", "category", "reason"],
            registry=self.registry,
        )
        self.budget_tokens = Histogram(
            "extproc_budget_tokens",
            "Estimated token budgets",
            buckets=_TOKEN_BUCKETS,
            registry=self.registry,
        )
        self.observations = Counter(
            "extproc_observations_total",
            "Responses observed: learned from, or why not",
            ["result"],
            registry=self.registry,
        )
        self.estimate_error = Histogram(
            "extproc_estimate_error_ratio",
            "(estimated - counted) / counted prompt tokens",
            ["category"],
            buckets=_ERROR_BUCKETS,
            registry=self.registry,
        )
        self.under_estimates = Counter(
            "extproc_under_estimates_total",
            "Observed requests whose prompt exceeded the bound that routing used",
            registry=self.registry,
        )
        self.misroutes = Counter(
            "extproc_misroutes_total",
            "Observed requests that belonged in another pool",
            ["kind"],
            registry=self.registry,
        )
        self.overflows = Counter(
            "extproc_overflow_retries_total",
            "Observed requests that Envoy retried on a larger pool",
            registry=self.registry,
        )
        self.ended = Counter(
            "extproc_exchanges_ended_total",
            "ext_proc streams, by the state they ended in",
            ["state"],
            registry=self.registry,
        )
        self.protocol_errors = Counter(
            "extproc_protocol_errors_total",
            "Messages that ext_proc does not have, or out of order",
            registry=self.registry,
        )
        self.inflight = Gauge(
            "extproc_streams_inflight", "Open ext_proc streams", registry=self.registry
        )
        self.message_seconds = Histogram(
            "extproc_message_seconds",
            "Time to answer a message, by phase",
            ["phase"],
            buckets=_LATENCY_BUCKETS,
            registry=self.registry,
        )
        Gauge(
            "extproc_build_info", "Version", ["version"], registry=self.registry
        ).labels(extproc.__version__).set(1)

    def decided(self, decision: Decision) -> None:
        """Count a decision."""
        self.decisions.labels(
            decision.pool.name, decision.category, decision.reason
        ).inc()
        if not decision.reason.failed_open:
            self.budget_tokens.observe(decision.budget_tokens)

    def observed(self, observation: Observation, lesson: Lesson) -> None:
        """Count an observation and what it taught."""
        self.observations.labels(lesson.skipped or "learned").inc()
        if lesson.error_ratio is not None:
            category = observation.decision.category
            self.estimate_error.labels(category).observe(lesson.error_ratio)
        if lesson.under_estimated:
            self.under_estimates.inc()
        if lesson.misroute is not None:
            self.misroutes.labels(lesson.misroute).inc()
        if observation.outcome.attempts > 1:
            self.overflows.inc()
