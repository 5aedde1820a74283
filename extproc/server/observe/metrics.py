"""Every Prometheus metric, in one place; the facts come from ``service``.

Labels are from closed sets: pools and categories of the configuration, reasons of
the code. Never a model name, a path or anything else that a client chooses.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from prometheus_client import CollectorRegistry, Counter, Gauge
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

import extproc
from extproc.exchange.events import Observation, Serving
from extproc.routing.advice import Advice
from extproc.routing.router import Decision, Lesson
from extproc.server.learned.sync import Synced
from extproc.server.observe.counters import FastCounter, FastHistogram
from extproc.server.pools.watch import PoolStatus
from extproc.server.reload import Reloaded

Risk = tuple[float | None, float | None]
"""Stated and achieved share of prompts above their bound."""

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
_FIRST_BYTE_BUCKETS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
_MAX_CLUSTERS = 32
"""Of Envoy's, told apart: their names are its operator's, and so few."""
NO_CLUSTER = "none"
"""Envoy answered itself."""
OTHER_CLUSTER = "other"
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


class _Risk(Collector):
    """Reads the stated and the achieved risk when scraped."""

    def __init__(self, risk: Callable[[], Risk]) -> None:
        self._risk = risk

    def collect(self) -> list[GaugeMetricFamily]:
        """Nothing for an estimator that states no risk."""
        stated, achieved = self._risk()
        families = []
        for name, text, value in (
            ("stated", "Share of prompts that may exceed their bound", stated),
            ("achieved", "Share of prompts that did, of late", achieved),
        ):
            if value is not None:
                family = GaugeMetricFamily(f"extproc_{name}_under_estimate_rate", text)
                family.add_metric([], value)
                families.append(family)
        return families


class _Pools(Collector):
    """Reads the state of the watched pools when scraped."""

    def __init__(self, pools: Callable[[], Sequence[PoolStatus]]) -> None:
        self._pools = pools

    def collect(self) -> list[GaugeMetricFamily]:
        """One sample a pool that has endpoints."""
        families = {
            name: GaugeMetricFamily(f"extproc_pool_{name}", text, labels=["pool"])
            for name, text in (
                ("endpoints", "Endpoints of the pool that are asked for their load"),
                ("healthy_endpoints", "Of those, the ones that answer"),
                ("under_pressure", "1 while requests spill to a larger pool"),
                ("waiting_requests", "Mean queue of an endpoint; absent if not known"),
                ("kv_cache_usage", "Mean share in use, 0 to 1; absent if not known"),
                ("max_model_len_differs", "1 if an endpoint's is not the configured"),
            )
        }
        for pool in self._pools():
            for name, value in (
                ("endpoints", pool.endpoints),
                ("healthy_endpoints", pool.healthy),
                ("under_pressure", pool.under_pressure),
                ("waiting_requests", pool.waiting),
                ("kv_cache_usage", pool.kv_cache_usage),
                ("max_model_len_differs", pool.max_model_len_differs),
            ):
                if value is not None:
                    families[name].add_metric([pool.name], float(value))
        return list(families.values())


class _Advised(Collector):
    """Asks for the threshold advice when scraped."""

    def __init__(self, advice: Callable[[], Advice | None]) -> None:
        self._advice = advice

    def collect(self) -> list[GaugeMetricFamily]:
        """No sample before there is advice to give."""
        labels = ["threshold"]
        advised = GaugeMetricFamily(
            "extproc_advised_threshold_tokens",
            "The smallest pool's threshold that would save most",
        )
        saving = GaugeMetricFamily(
            "extproc_threshold_saving_ratio",
            "Share of a homogeneous fleet saved, estimated, current or advised",
            labels=labels,
        )
        exceeded = GaugeMetricFamily(
            "extproc_threshold_exceeded_ratio",
            "Share of observed requests held to fit the threshold that needed more",
            labels=labels,
        )
        advice = self._advice()
        if advice is not None:
            advised.add_metric([], advice.best.threshold_tokens)
            for name, prospect in (
                ("current", advice.current),
                ("advised", advice.best),
            ):
                saving.add_metric([name], prospect.saving)
                if prospect.under_rate is not None:
                    exceeded.add_metric([name], prospect.under_rate)
        return [advised, saving, exceeded]


class Metrics:
    """The server's metrics, in a registry of their own.

    Args:
        ratios: the learned ratios, by category.
        pools: what is known of the pools that are watched.
        risk: what share of prompts may exceed their bound, and does.
        advice: the threshold advice, if there is any.
    """

    def __init__(
        self,
        ratios: Callable[[], Mapping[str, float]],
        pools: Callable[[], Sequence[PoolStatus]] = tuple,
        risk: Callable[[], Risk] = lambda: (None, None),
        advice: Callable[[], Advice | None] = lambda: None,
    ) -> None:
        self.registry = CollectorRegistry()
        self.registry.register(_Ratios(ratios))
        self.registry.register(_Pools(pools))
        self.registry.register(_Risk(risk))
        self.registry.register(_Advised(advice))
        self.decisions = FastCounter(
            "extproc_decisions_total", "Requests routed", ["pool", "category", "reason"]
        )
        self.budget_tokens = FastHistogram(
            "extproc_budget_tokens", "Estimated token budgets", _TOKEN_BUCKETS
        )
        self.observations = FastCounter(
            "extproc_observations_total",
            "Responses observed: learned from, or why not",
            ["result"],
        )
        self.estimate_error = FastHistogram(
            "extproc_estimate_error_ratio",
            "(estimated - counted) / counted prompt tokens",
            _ERROR_BUCKETS,
            ["category"],
        )
        self.under_estimates = FastCounter(
            "extproc_under_estimates_total",
            "Observed requests whose prompt exceeded the bound that routing used",
        )
        self.misroutes = FastCounter(
            "extproc_misroutes_total",
            "Observed requests that belonged in another pool",
            ["kind"],
        )
        self.overflows = FastCounter(
            "extproc_overflow_retries_total",
            "Observed requests that Envoy retried on a larger pool",
        )
        self.access_log_entries = FastCounter(
            "extproc_access_log_entries_total",
            "Access log entries received from Envoy: observed, or why not",
            ["result"],
        )
        self.first_byte_seconds = FastHistogram(
            "extproc_first_byte_seconds",
            "Time to a response's first byte, by the pool decided, in the access log",
            _FIRST_BYTE_BUCKETS,
            ["pool"],
        )
        self.served = FastCounter(
            "extproc_served_total",
            "Responses in the access log, by the pool decided and who answered",
            ["pool", "cluster"],
        )
        self.ended = FastCounter(
            "extproc_exchanges_ended_total",
            "ext_proc streams, by the state they ended in",
            ["state"],
        )
        self.protocol_errors = FastCounter(
            "extproc_protocol_errors_total",
            "Messages that ext_proc does not have, or out of order",
        )
        self.faults = FastCounter(
            "extproc_faults_total",
            "Errors of this program; the requests went on, to the default pool",
        )
        self.message_seconds = FastHistogram(
            "extproc_message_seconds",
            "Time to answer a message, by phase",
            _LATENCY_BUCKETS,
            ["phase"],
        )
        for hot in (
            self.decisions,
            self.budget_tokens,
            self.observations,
            self.estimate_error,
            self.under_estimates,
            self.misroutes,
            self.overflows,
            self.access_log_entries,
            self.first_byte_seconds,
            self.served,
            self.ended,
            self.protocol_errors,
            self.faults,
            self.message_seconds,
        ):
            self.registry.register(hot)
        self._clusters: set[str] = set()
        self.streams_inflight = 0
        Gauge(
            "extproc_streams_inflight", "Open ext_proc streams", registry=self.registry
        ).set_function(lambda: self.streams_inflight)
        self.state_syncs = Counter(
            "extproc_state_syncs_total",
            "Exchanges of what was learned with the store, by result",
            ["result"],
            registry=self.registry,
        )
        self.state_synced = Gauge(
            "extproc_state_synced_timestamp_seconds",
            "When the last such exchange succeeded; 0: never",
            registry=self.registry,
        )
        self.config_reloads = Counter(
            "extproc_config_reload_total",
            "Configurations that were read again, by result",
            ["result"],
            registry=self.registry,
        )
        Gauge(
            "extproc_build_info", "Version", ["version"], registry=self.registry
        ).labels(extproc.__version__).set(1)

    def synced(self, result: Synced) -> None:
        """Count an exchange with the store."""
        self.state_syncs.labels(result).inc()
        if result is not Synced.UNAVAILABLE:
            self.state_synced.set_to_current_time()

    def reloaded(self, result: Reloaded) -> None:
        """Count a new configuration."""
        self.config_reloads.labels(result).inc()

    def decided(self, decision: Decision) -> None:
        """Count a decision."""
        self.decisions.add(decision.pool.name, decision.category, decision.reason)
        if not decision.reason.failed_open:
            self.budget_tokens.add(decision.budget_tokens)

    def observed(self, observation: Observation, lesson: Lesson) -> None:
        """Count an observation and what it taught."""
        self.observations.add(lesson.skipped or "learned")
        if lesson.error_ratio is not None:
            self.estimate_error.add(lesson.error_ratio, observation.decision.category)
        if lesson.under_estimated:
            self.under_estimates.add()
        if lesson.misroute is not None:
            self.misroutes.add(lesson.misroute)
        if observation.outcome.attempts > 1:
            self.overflows.add()
        if observation.serving is not None:
            self._served(observation.decision.pool.name, observation.serving)

    def _served(self, pool: str, serving: Serving) -> None:
        cluster = serving.cluster or NO_CLUSTER
        if cluster not in self._clusters:
            if len(self._clusters) < _MAX_CLUSTERS:
                self._clusters.add(cluster)
            else:
                cluster = OTHER_CLUSTER
        self.served.add(pool, cluster)
        if serving.first_byte_s is not None:
            self.first_byte_seconds.add(serving.first_byte_s, pool)
