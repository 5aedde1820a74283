"""OpenTelemetry: a span a decision and the GenAI token metric, over OTLP.

Imported only where ``otel.enabled`` is on; without it nothing here is loaded and no
exchange does more. The span continues the trace of the stream itself (measured: an
Envoy 1.40 that traces puts its own span's ``traceparent`` into the call's metadata),
else the request's own W3C context, and ends with the decision: it holds what the router
added to the request. Names are those of the GenAI semantic conventions
(open-telemetry/semantic-conventions-genai); ours begin with ``extproc.``. No text of a
request is in them; the served model's name is.

Where it goes, and what is sampled, say the SDK's own variables: OTEL_SERVICE_NAME,
OTEL_EXPORTER_OTLP_ENDPOINT, OTEL_TRACES_SAMPLER and the rest.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

from msgspec.structs import asdict
from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.grpc.metric_exporter import OTLPMetricExporter
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader
from opentelemetry.sdk.metrics.view import ExplicitBucketHistogramAggregation, View
from opentelemetry.sdk.resources import SERVICE_NAME, SERVICE_VERSION, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import SpanKind
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

import extproc
from extproc.exchange.events import Event, Observation, RequestHeaders, Step
from extproc.exchange.machine import Exchange, ExchangeSettings
from extproc.exchange.openai import CHAT, find_endpoint
from extproc.routing.decision import decision_fields
from extproc.routing.policy import Loads
from extproc.routing.router import Decision, Lesson, Router

_SCOPE = "extproc"
_PROVIDER = "vllm"
_SPAN_NAME = "choose_pool"

_TOKEN_BUCKETS = tuple(float(4**power) for power in range(14))
"""The convention's bounds of ``gen_ai.client.token.usage``: 1 to 67,108,864."""

_ALWAYS = ("pool", "reason", "category", "body_bytes")
_ESTIMATED = (
    *_ALWAYS,
    "prompt_tokens",
    "bound_tokens",
    "output_tokens",
    "budget_tokens",
)
"""The decision's fields that a span has, the latter if there was an estimate."""

Attributes = dict[str, str | int]


class Tracing:
    """Exports spans and token usage.

    Spans are handed over in batches by a thread of the SDK's; a collector that does not
    answer costs spans, never requests.

    Args:
        environment: none of the SDK's variables but OTEL_SERVICE_NAME is looked up
            here; the SDK reads its own.
    """

    def __init__(self, environment: Mapping[str, str]) -> None:
        service = environment.get("OTEL_SERVICE_NAME") or "token-budget-router"
        resource = Resource.create(
            {SERVICE_NAME: service, SERVICE_VERSION: extproc.__version__}
        )
        self._tracers = TracerProvider(resource=resource, shutdown_on_exit=False)
        self._tracers.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
        self._tracer = self._tracers.get_tracer(_SCOPE, extproc.__version__)
        self._meters = MeterProvider(
            [PeriodicExportingMetricReader(OTLPMetricExporter())],
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
            description="Tokens that observed responses counted",
        )
        self._propagator = TraceContextTextMapPropagator()

    def new_exchange(
        self,
        metadata: Mapping[str, str],
        router: Router,
        settings: ExchangeSettings,
        wants_feedback: Callable[[Decision], bool],
        loads: Loads,
        /,
    ) -> Exchange:
        """Make an exchange that records the span of its decision."""
        return TracedExchange(self, metadata, router, settings, wants_feedback, loads)

    def context(
        self, metadata: Mapping[str, str], headers: Mapping[str, str]
    ) -> Context:
        """The trace to go on with: Envoy's own, else the client's."""
        carrier = metadata if "traceparent" in metadata else headers
        return self._propagator.extract(carrier)

    def record(
        self, decision: Decision, path: str, context: Context, began_ns: int
    ) -> None:
        """Make the span of a decision that was made just now."""
        span = self._tracer.start_span(
            _SPAN_NAME,
            context,
            SpanKind.SERVER,
            attributes=_attributes(decision, path),
            start_time=began_ns,
        )
        span.end()

    # What a watcher of the service is told.

    def decided(self, decision: Decision) -> None:
        """Nothing: the exchange records its own span."""

    def observed(self, observation: Observation, lesson: Lesson) -> None:
        """Count the tokens of a response, by type."""
        outcome = observation.outcome
        common = {
            "gen_ai.provider.name": _PROVIDER,
            "extproc.pool": observation.decision.pool.name,
        }
        for kind, tokens in (
            ("input", outcome.prompt_tokens),
            ("output", outcome.completion_tokens),
        ):
            if tokens:
                self._usage.record(tokens, {**common, "gen_ai.token.type": kind})

    def close(self) -> None:
        """Hand over what is left, waiting for the collector if need be; blocks."""
        self._tracers.shutdown()
        self._meters.shutdown()


def _attributes(decision: Decision, path: str) -> Attributes:
    endpoint = find_endpoint(path) or CHAT
    fields = asdict(decision_fields(decision)) | {
        "budget_tokens": decision.budget_tokens
    }
    shown = _ALWAYS if decision.reason.failed_open else _ESTIMATED
    attributes: Attributes = {
        "gen_ai.operation.name": endpoint.operation,
        "gen_ai.provider.name": _PROVIDER,
        **{f"extproc.{name}": fields[name] for name in shown},
    }
    if decision.model:
        attributes["gen_ai.request.model"] = decision.model
    if decision.declared and decision.output_tokens:
        attributes["gen_ai.request.max_tokens"] = decision.output_tokens
    return attributes


class TracedExchange(Exchange):
    """An exchange that records the span of its decision.

    Args:
        tracing: where to.
        metadata: of the gRPC stream.
        router, settings, wants_feedback, loads: an exchange's own.
    """

    def __init__(
        self,
        tracing: Tracing,
        metadata: Mapping[str, str],
        router: Router,
        settings: ExchangeSettings,
        wants_feedback: Callable[[Decision], bool],
        loads: Loads,
    ) -> None:
        super().__init__(router, settings, wants_feedback, loads)
        self._tracing = tracing
        self._metadata = metadata
        self._context = Context()
        self._began_ns = 0

    def receive(self, event: Event) -> Step:
        """Advance as an exchange does, and note when it decides."""
        if isinstance(event, RequestHeaders):
            self._began_ns = time.time_ns()
            self._context = self._tracing.context(self._metadata, event.headers)
        undecided = self.decision is None
        step = super().receive(event)
        if undecided and self.decision is not None:
            self._tracing.record(
                self.decision, self._path, self._context, self._began_ns
            )
        return step
