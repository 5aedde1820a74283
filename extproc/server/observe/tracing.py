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
from collections.abc import Mapping

from msgspec.structs import asdict
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
from extproc.exchange.events import Decided, Observation
from extproc.exchange.openai import CHAT, find_endpoint
from extproc.routing.decision import decision_fields
from extproc.routing.router import Decision, Lesson

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

    def record(
        self, decided: Decided, metadata: Mapping[str, str], elapsed_s: float
    ) -> None:
        """Record the span of a decision that was made just now.

        It continues the trace of Envoy's own stream, else the client's.

        Args:
            decided: the decision and its request's headers.
            metadata: the gRPC stream's.
            elapsed_s: seconds since the stream was opened.
        """
        carrier = metadata if "traceparent" in metadata else decided.headers
        now_ns = time.time_ns()
        span = self._tracer.start_span(
            _SPAN_NAME,
            self._propagator.extract(carrier),
            SpanKind.SERVER,
            attributes=_attributes(decided.decision, decided.headers.get(":path", "")),
            start_time=now_ns - round(elapsed_s * 1e9),
        )
        span.end(now_ns)

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
