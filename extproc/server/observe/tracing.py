"""Exports a span per decision and the GenAI token metric with OpenTelemetry (OTLP).

This module is imported only if ``otel.enabled`` is true; otherwise tracing takes no
time. A span continues the trace of the stream (in a measurement, Envoy 1.40 with
tracing put the ``traceparent`` of its own span into the call's metadata). Without such
metadata, the span continues the trace in the request's W3C headers. The span ends with
the decision, so its duration is the time that the router added to the request. The
router performs no inference, so its span has no ``gen_ai`` attribute. Tools that count
inferences by such attributes would count each request twice. The metric follows the
GenAI semantic conventions (open-telemetry/semantic-conventions-genai). Span and metric
contain the served model's name, but no text of a request.

The collector and sampling are configured with the environment variables of the SDK:
OTEL_SERVICE_NAME, OTEL_EXPORTER_OTLP_ENDPOINT, OTEL_EXPORTER_OTLP_PROTOCOL (``grpc`` or
``http/protobuf``), OTEL_TRACES_SAMPLER and the rest.
"""

from __future__ import annotations

import importlib
import logging
import time
from collections.abc import Callable, Mapping

from msgspec.structs import asdict
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import (
    MetricExporter,
    PeriodicExportingMetricReader,
)
from opentelemetry.sdk.metrics.view import ExplicitBucketHistogramAggregation, View
from opentelemetry.sdk.resources import SERVICE_NAME, SERVICE_VERSION, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter
from opentelemetry.trace import SpanKind
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

import extproc
from extproc.exchange.events import Decided, Observation
from extproc.routing.decision import decision_fields
from extproc.routing.router import Decision, Lesson
from extproc.server.logs import OncePerInterval

_SCOPE = "extproc"
_PROVIDER = "vllm"
_SPAN_NAME = "choose_pool"

_TOKEN_BUCKETS = tuple(float(4**power) for power in range(14))
"""Bucket bounds that the conventions define for ``gen_ai.client.token.usage``, from 1
to 67,108,864."""

_PROTOCOLS = {"grpc": "grpc", "http/protobuf": "http"}
"""Exporter package for each value of OTEL_EXPORTER_OTLP_PROTOCOL."""

_LOG_INTERVAL_S = 60.0
"""Seconds between log lines of the SDK. Without this limit, it logs every second while
the collector is unreachable."""

MAX_MODELS = 64
"""Maximum number of model names in the metric. Only names that a backend reported are
used; any further name becomes ``other``."""

OTHER_MODEL = "other"

_ALWAYS = ("pool", "reason", "category", "operation", "body_bytes")
_ESTIMATED = (
    *_ALWAYS,
    "prompt_tokens",
    "bound_tokens",
    "output_tokens",
    "budget_tokens",
)
"""Decision fields for a span's attributes. The second set is used only if the decision
has an estimate."""

Attributes = dict[str, str | int]


class Tracing:
    """Exports spans and token usage.

    A thread of the SDK exports spans in batches; if the collector is unreachable, spans
    are lost but requests are never delayed.

    Args:
        environment: source of OTEL_SERVICE_NAME and OTEL_EXPORTER_OTLP_PROTOCOL; the
            SDK reads its other variables itself.

    Raises:
        ValueError: OTEL_EXPORTER_OTLP_PROTOCOL names an unsupported protocol.
    """

    def __init__(self, environment: Mapping[str, str]) -> None:
        spans, metrics = _exporters(environment)
        _quiet_the_sdk()
        self._models: set[str] = set()
        service = environment.get("OTEL_SERVICE_NAME") or "token-budget-router"
        resource = Resource.create(
            {SERVICE_NAME: service, SERVICE_VERSION: extproc.__version__}
        )
        self._tracers = TracerProvider(resource=resource, shutdown_on_exit=False)
        self._tracers.add_span_processor(BatchSpanProcessor(spans()))
        self._tracer = self._tracers.get_tracer(_SCOPE, extproc.__version__)
        self._meters = MeterProvider(
            [PeriodicExportingMetricReader(metrics())],
            resource,
            shutdown_on_exit=False,
            views=[
                View(
                    instrument_name="gen_ai.client.token.usage",
                    aggregation=ExplicitBucketHistogramAggregation(_TOKEN_BUCKETS),
                )
            ],
        )
        self._usage = self._meters.get_meter(
            _SCOPE, extproc.__version__
        ).create_histogram(
            "gen_ai.client.token.usage",
            unit="{token}",
            description="Tokens used by observed responses",
        )
        self._propagator = TraceContextTextMapPropagator()

    def record(
        self, decided: Decided, metadata: Mapping[str, str], elapsed_s: float
    ) -> None:
        """Record the span of a decision that has just been made.

        The span continues the trace of Envoy's stream, or else the client's trace.

        Args:
            decided: the decision and the request's headers.
            metadata: metadata of the gRPC stream.
            elapsed_s: seconds since the stream was opened.
        """
        carrier = metadata if "traceparent" in metadata else decided.head.headers
        now_ns = time.time_ns()
        span = self._tracer.start_span(
            _SPAN_NAME,
            self._propagator.extract(carrier),
            SpanKind.INTERNAL,
            attributes=_attributes(decided.decision),
            start_time=now_ns - round(elapsed_s * 1e9),
        )
        span.end(now_ns)

    def observed(self, observation: Observation, lesson: Lesson) -> None:
        """Count the tokens of a response by type."""
        outcome = observation.outcome
        common = {
            "gen_ai.operation.name": observation.decision.operation,
            "gen_ai.provider.name": _PROVIDER,
            "gen_ai.request.model": self._model(observation),
            "extproc.pool": observation.decision.pool.name,
        }
        for kind, tokens in (
            ("input", outcome.prompt_tokens),
            ("output", outcome.completion_tokens),
        ):
            if tokens:
                self._usage.record(tokens, {**common, "gen_ai.token.type": kind})

    def _model(self, observation: Observation) -> str:
        """Return the model's name for the metric, or ``other``.

        Clients can send any name, but a backend answers only requests for names that it
        serves.
        """
        name = observation.decision.model
        if name not in self._models:
            answered = observation.outcome.status == 200
            if not answered or not name or len(self._models) >= MAX_MODELS:
                return OTHER_MODEL
            self._models.add(name)
        return name

    def close(self) -> None:
        """Export the remaining spans and metrics; blocks until the export ends."""
        self._tracers.shutdown()
        self._meters.shutdown()


def _attributes(decision: Decision) -> Attributes:
    fields = asdict(decision_fields(decision)) | {
        "budget_tokens": decision.budget_tokens
    }
    shown = _ALWAYS if decision.reason.failed_open else _ESTIMATED
    attributes: Attributes = {f"extproc.{name}": fields[name] for name in shown}
    if decision.model:
        attributes["extproc.model"] = decision.model
    if decision.client_limit_tokens:
        attributes["extproc.max_tokens"] = decision.client_limit_tokens
    return attributes


def _exporters(
    environment: Mapping[str, str],
) -> tuple[Callable[[], SpanExporter], Callable[[], MetricExporter]]:
    """Return factories for the span and metric exporters.

    Raises:
        ValueError: OTEL_EXPORTER_OTLP_PROTOCOL names an unsupported protocol.
    """
    variable = "OTEL_EXPORTER_OTLP_PROTOCOL"
    protocol = environment.get(variable) or "grpc"
    package = _PROTOCOLS.get(protocol)
    if package is None:
        accepted = " or ".join(_PROTOCOLS)
        raise ValueError(f"{variable}: {protocol!r}; expected {accepted}")
    root = f"opentelemetry.exporter.otlp.proto.{package}"
    spans = importlib.import_module(f"{root}.trace_exporter").OTLPSpanExporter
    metrics = importlib.import_module(f"{root}.metric_exporter").OTLPMetricExporter
    return spans, metrics


def _quiet_the_sdk() -> None:
    """Limit the SDK's log to one line a minute, since exporters retry each second."""
    logger = logging.getLogger("opentelemetry")
    if not any(isinstance(each, OncePerInterval) for each in logger.handlers):
        logger.addHandler(OncePerInterval(logging.getLogger(), _LOG_INTERVAL_S))
        logger.propagate = False
