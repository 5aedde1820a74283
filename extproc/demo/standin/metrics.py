"""The part of vLLM's ``/metrics`` that routers and dashboards read.

Names, labels and meanings are those of vLLM (``vllm/v1/metrics/loggers.py``).
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterable, Iterator, Sequence

from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Histogram,
    generate_latest,
)
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from extproc.demo.standin.engine import Engine
from extproc.demo.standin.response import Answer

_LABELS = ("model_name", "engine")
_SECONDS = (0.001, 0.005, 0.01, 0.02, 0.04, 0.08, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)


class _EngineState(Collector):
    """Metrics that are read from the engine at each scrape."""

    def __init__(self, model_name: str, engine: Engine) -> None:
        self._labels = (model_name, "0")
        self._engine = engine

    def collect(self) -> Iterable[Metric]:
        scheduler = self._engine.scheduler
        totals = self._engine.totals
        for name, help_text, value in (
            ("num_requests_running", "Running requests.", len(scheduler.running)),
            ("num_requests_waiting", "Queued requests.", len(scheduler.waiting)),
            ("kv_cache_usage_perc", "KV-cache use, 0 to 1.", scheduler.kv_cache_usage),
        ):
            gauge = GaugeMetricFamily(f"vllm:{name}", help_text, labels=_LABELS)
            gauge.add_metric(self._labels, value)
            yield gauge
        for name, help_text, value in (
            ("num_preemptions", "Requests evicted.", totals.preemptions),
            ("prompt_tokens", "Prompt tokens.", totals.prompt_tokens),
            ("generation_tokens", "Tokens generated.", totals.generation_tokens),
        ):
            counter = CounterMetricFamily(f"vllm:{name}", help_text, labels=_LABELS)
            counter.add_metric(self._labels, value)
            yield counter
        limits = self._engine.limits
        info = GaugeMetricFamily(
            "vllm:cache_config_info",
            "KV-cache configuration.",
            labels=("block_size", "num_gpu_blocks", "engine"),
        )
        info.add_metric((str(limits.block_size), str(limits.num_blocks), "0"), 1)
        yield info


class Progress:
    """Metrics of one request in progress."""

    def __init__(self, telemetry: Telemetry, now: Callable[[], float]) -> None:
        self._telemetry = telemetry
        self._now = now
        self.started = now()
        self._last: float | None = None

    def token(self) -> None:
        """Record a new token of any of the request's sequences."""
        now = self._now()
        if self._last is None:
            self._telemetry.time_to_first_token.observe(now - self.started)
        else:
            self._telemetry.inter_token_latency.observe(now - self._last)
        self._last = now


class Telemetry:
    """A stand-in's metrics, in a separate registry."""

    content_type = CONTENT_TYPE_LATEST

    def __init__(
        self,
        model_name: str,
        engine: Engine,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._now = now
        self._registry = CollectorRegistry()
        self._registry.register(_EngineState(model_name, engine))
        labels = (model_name, "0")

        def histogram(name: str, help_text: str) -> Histogram:
            family = Histogram(
                f"vllm:{name}",
                help_text,
                _LABELS,
                buckets=_SECONDS,
                registry=self._registry,
            )
            return family.labels(*labels)

        self.time_to_first_token = histogram(
            "time_to_first_token_seconds", "Arrival to first token."
        )
        self.inter_token_latency = histogram(
            "inter_token_latency_seconds", "Between two tokens of a request."
        )
        self._e2e = histogram("e2e_request_latency_seconds", "Arrival to last token.")
        self._success = Counter(
            "vllm:request_success",
            "Finished requests, by reason.",
            (*_LABELS, "finished_reason"),
            registry=self._registry,
        )
        self._labels = labels

    @contextlib.contextmanager
    def request(self, answers: Sequence[Answer]) -> Iterator[Progress]:
        """Record one request; it counts as aborted if an exception ends it."""
        progress = Progress(self, self._now)
        try:
            yield progress
        except BaseException:
            self._success.labels(*self._labels, "abort").inc()
            raise
        self._e2e.observe(self._now() - progress.started)
        for answer in answers:
            self._success.labels(*self._labels, answer.finish_reason).inc()

    def exposition(self) -> bytes:
        """Return the metrics in Prometheus's text format."""
        return generate_latest(self._registry)
