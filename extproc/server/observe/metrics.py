"""Every Prometheus metric that counts events; the ext_proc service reports these.

Label values come from closed sets: the configuration's pools and categories, and the
code's reasons. Label values never contain a model name, a path or any other client
input.
"""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge

import extproc
from extproc.exchange.events import Observation, Serving
from extproc.routing.router import Decision, Lesson
from extproc.server.learned.sync import Synced
from extproc.server.observe.counters import MODEL, FastCounter, FastHistogram
from extproc.server.reload import Reloaded

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
"""Maximum number of Envoy clusters to count separately. A deployment has only a few."""
NO_CLUSTER = "none"
"""Value of the cluster label if Envoy itself produced the response."""
OTHER_CLUSTER = "other"
_LATENCY_BUCKETS = (5e-5, 1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 5e-2)


class Metrics:
    """Event counts in a separate registry; ``gauges`` has the computed values."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.decisions = FastCounter(
            "extproc_decisions_total",
            "Requests routed",
            ["pool", MODEL, "category", "reason"],
        )
        self.budget_tokens = FastHistogram(
            "extproc_budget_tokens",
            "Estimated token budgets",
            _TOKEN_BUCKETS,
            [MODEL],
        )
        self.observations = FastCounter(
            "extproc_observations_total",
            "Observed responses, by result: learned from, or the reason why not",
            ["result", MODEL],
        )
        self.estimate_error = FastHistogram(
            "extproc_estimate_error_ratio",
            "Relative estimation error: (estimated - counted) / counted prompt tokens",
            _ERROR_BUCKETS,
            ["category", MODEL],
        )
        self.under_estimates = FastCounter(
            "extproc_under_estimates_total",
            "Observed requests whose prompt exceeded its bound",
            [MODEL],
        )
        self.misroutes = FastCounter(
            "extproc_misroutes_total",
            "Observed requests that belonged in another pool",
            ["kind", MODEL],
        )
        self.overflows = FastCounter(
            "extproc_overflow_retries_total",
            "Observed requests that Envoy retried on a larger pool",
            [MODEL],
        )
        self.access_log_entries = FastCounter(
            "extproc_access_log_entries_total",
            "Access log entries received from Envoy, by result",
            ["result"],
        )
        self.first_byte_seconds = FastHistogram(
            "extproc_first_byte_seconds",
            "Time to a response's first byte in the access log, by decided pool",
            _FIRST_BYTE_BUCKETS,
            ["pool"],
        )
        self.served = FastCounter(
            "extproc_served_total",
            "Responses in the access log, by decided pool and answering cluster",
            ["pool", "cluster"],
        )
        self.ended = FastCounter(
            "extproc_exchanges_ended_total",
            "ext_proc streams, by their final state",
            ["state"],
        )
        self.bodies_lost = FastCounter(
            "extproc_bodies_lost_total",
            "Bodies requested from Envoy that did not arrive, by symptom",
            ["how"],
        )
        self.protocol_errors = FastCounter(
            "extproc_protocol_errors_total",
            "ext_proc messages that were invalid or out of order",
        )
        self.faults = FastCounter(
            "extproc_faults_total",
            "Internal errors; the requests continued to the default pool",
        )
        self.message_seconds = FastHistogram(
            "extproc_message_seconds",
            "Time to answer an ext_proc message, by phase",
            _LATENCY_BUCKETS,
            ["phase"],
        )
        self.not_routed = FastCounter(
            "extproc_not_routed_total",
            "Requests without a decision, by reason",
            ["reason"],
        )
        for hot in (
            self.not_routed,
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
            self.bodies_lost,
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
            "Exchanges of learned state with the store, by result",
            ["result"],
            registry=self.registry,
        )
        self.state_synced = Gauge(
            "extproc_state_synced_timestamp_seconds",
            "Time of the last successful exchange with the store; 0 if none",
            registry=self.registry,
        )
        self.config_reloads = Counter(
            "extproc_config_reload_total",
            "Configuration reloads, by result",
            ["result"],
            registry=self.registry,
        )
        self.restart_needed = Gauge(
            "extproc_restart_needed_settings",
            "Changed settings that need a restart to take effect",
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

    def reloaded(self, result: Reloaded, restart_needed: int) -> None:
        """Count a reload.

        Args:
            result: whether the new configuration is in force.
            restart_needed: number of changed settings that need a restart.
        """
        self.config_reloads.labels(result).inc()
        if result is Reloaded.OK:
            self.restart_needed.set(restart_needed)

    def decided(self, decision: Decision) -> None:
        """Count a decision."""
        model = decision.base_model
        self.decisions.add(
            decision.pool.name, model, decision.category, decision.reason
        )
        if not decision.reason.failed_open:
            self.budget_tokens.add(decision.budget_tokens, model)

    def observed(self, observation: Observation, lesson: Lesson) -> None:
        """Count an observation and the lesson learned from it."""
        decision = observation.decision
        model = decision.base_model
        self.observations.add(lesson.skipped or "learned", model)
        if lesson.error_ratio is not None:
            self.estimate_error.add(lesson.error_ratio, decision.category, model)
        if lesson.under_estimated:
            self.under_estimates.add(model)
        if lesson.misroute is not None:
            self.misroutes.add(lesson.misroute, model)
        if observation.outcome.attempts > 1:
            self.overflows.add(model)
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
