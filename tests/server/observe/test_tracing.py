"""OpenTelemetry with a real OTLP receiver, from a server in a separate process."""

import gzip
import json
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent import futures
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import grpc
import pytest

from extproc.config import ConfigError, OtelConfig
from extproc.exchange.events import Observation
from extproc.routing.decision import Decision, Outcome
from extproc.routing.policy import Pool, Reason
from extproc.server.build import build_tracing
from extproc.wire import ext_proc_pb2 as pb

PROJECT = Path(__file__).parents[3]
PROCESS = "/envoy.service.ext_proc.v3.ExternalProcessor/Process"
LIMIT_S = 30.0
TRACE, SPAN, OTHER_SPAN = (
    "0af7651916cd43dd8448eb211c80319c",
    "b7ad6b7169203331",
    "1" * 16,
)
BODY = json.dumps(
    {
        "model": "a-model",
        "messages": [{"role": "user", "content": "A secret."}],
        "max_tokens": 77,
    }
).encode()


def test_nothing_is_loaded_unless_it_is_enabled() -> None:
    assert build_tracing(OtelConfig()) is None
    script = (
        "import sys; from extproc.server.app import App;"
        "from extproc.config import Config; App(Config());"
        "sys.exit(any(name.startswith('opentelemetry') for name in sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=PROJECT, check=False)
    assert done.returncode == 0


def test_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.context", None)
    monkeypatch.delitem(sys.modules, "extproc.server.observe.tracing", raising=False)
    with pytest.raises(ConfigError, match=r"token-budget-router\[otel\]"):
        build_tracing(OtelConfig(enabled=True))


class Receiver:
    """A receiver of OTLP traces and metrics, over gRPC and HTTP."""

    def __init__(self) -> None:
        self.spans: list[Any] = []
        self.resources: list[Any] = []
        self.metrics: list[Any] = []
        self.arrived = threading.Event()
        self._server = grpc.server(futures.ThreadPoolExecutor(2))
        trace_service = pytest.importorskip(
            "opentelemetry.proto.collector.trace.v1.trace_service_pb2",
            reason="pip install '.[otel]'",
        )
        metrics_service = pytest.importorskip(
            "opentelemetry.proto.collector.metrics.v1.metrics_service_pb2"
        )
        for name, method, module in (
            ("trace", self._take_trace, trace_service),
            ("metrics", self._take_metrics, metrics_service),
        ):
            kind = name.capitalize()
            handler = grpc.unary_unary_rpc_method_handler(
                method,
                getattr(module, f"Export{kind}ServiceRequest").FromString,
                getattr(module, f"Export{kind}ServiceResponse").SerializeToString,
            )
            service = f"opentelemetry.proto.collector.{name}.v1.{kind}Service"
            self._server.add_generic_rpc_handlers(
                (grpc.method_handlers_generic_handler(service, {"Export": handler}),)
            )
        self._answers = {
            "trace": trace_service.ExportTraceServiceResponse,
            "metrics": metrics_service.ExportMetricsServiceResponse,
        }
        grpc_port = self._server.add_insecure_port("127.0.0.1:0")
        self._server.start()
        self._http = ThreadingHTTPServer(
            ("127.0.0.1", 0),
            self._handler(
                {
                    "/v1/traces": (
                        trace_service.ExportTraceServiceRequest,
                        self._take_trace,
                    ),
                    "/v1/metrics": (
                        metrics_service.ExportMetricsServiceRequest,
                        self._take_metrics,
                    ),
                }
            ),
        )
        threading.Thread(target=self._http.serve_forever, daemon=True).start()
        self.ports = {"grpc": grpc_port, "http/protobuf": self._http.server_port}

    def _handler(self, takers: dict[str, Any]) -> type[BaseHTTPRequestHandler]:
        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                if self.headers.get("content-encoding") == "gzip":
                    body = gzip.decompress(body)
                message, take = takers[self.path]
                answer = take(message.FromString(body), None).SerializeToString()
                self.send_response(200)
                self.send_header("content-type", "application/x-protobuf")
                self.send_header("content-length", str(len(answer)))
                self.end_headers()
                self.wfile.write(answer)

            def log_message(self, format: str, *args: object) -> None:
                pass

        return Handler

    def _take_trace(self, request: Any, context: Any) -> Any:
        for resource in request.resource_spans:
            self.resources.append(resource.resource)
            for scope in resource.scope_spans:
                self.spans.extend(scope.spans)
        self.arrived.set()
        return self._answers["trace"]()

    def _take_metrics(self, request: Any, context: Any) -> Any:
        for resource in request.resource_metrics:
            for scope in resource.scope_metrics:
                self.metrics.extend(scope.metrics)
        return self._answers["metrics"]()

    def stop(self) -> None:
        self._server.stop(None).wait()
        self._http.shutdown()
        self._http.server_close()


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    receiver = Receiver()
    yield receiver
    receiver.stop()


@pytest.fixture(params=["grpc", "http/protobuf"])
def server(
    receiver: Receiver, tmp_path: Path, request: pytest.FixtureRequest
) -> Iterator[subprocess.Popen[str]]:
    pytest.importorskip("opentelemetry.sdk.trace", reason="pip install '.[otel]'")
    config = tmp_path / "extproc.yaml"
    config.write_text(
        "otel: {enabled: true}\n"
        "log: {format: json}\n"
        "feedback: {sample: all}\n"
        "server: {listen: 127.0.0.1:0, admin: 127.0.0.1:0, lame_duck_s: 0}\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-m", "extproc", "serve", "--config", str(config)],
        cwd=PROJECT,
        env={
            "PYTHONPATH": str(PROJECT),
            "OTEL_EXPORTER_OTLP_PROTOCOL": request.param,
            "OTEL_EXPORTER_OTLP_ENDPOINT": (
                f"http://127.0.0.1:{receiver.ports[request.param]}"
            ),
            "OTEL_SERVICE_NAME": "the-router",
        },
        stderr=subprocess.PIPE,
        text=True,
    )
    watchdog = threading.Timer(LIMIT_S, process.kill)
    watchdog.start()
    yield process
    watchdog.cancel()
    process.kill()
    process.communicate()


def header(key: str, value: str) -> pb.HeaderValue:
    return pb.HeaderValue(key=key, raw_value=value.encode())


def request_headers(**more: str) -> pb.ProcessingRequest:
    headers = {
        ":path": "/v1/chat/completions",
        ":method": "POST",
        "content-length": str(len(BODY)),
        **more,
    }
    message = pb.ProcessingRequest()
    message.request_headers.headers.headers.extend(
        header(key, value) for key, value in headers.items()
    )
    return message


def talk(channel: grpc.Channel, headers: dict[str, str], metadata: Any = None) -> None:
    """Run one exchange, including the response."""
    process = channel.stream_stream(
        PROCESS, lambda m: m.SerializeToString(), pb.ProcessingResponse.FromString
    )
    body = pb.ProcessingRequest()
    body.request_body.body, body.request_body.end_of_stream = BODY, True
    response = pb.ProcessingRequest()
    response.response_headers.headers.headers.extend(
        [header(":status", "200"), header("content-type", "application/json")]
    )
    answer = pb.ProcessingRequest()
    answer.response_body.body = (
        b'{"usage": {"prompt_tokens": 9, "completion_tokens": 4}}'
    )
    answer.response_body.end_of_stream = True
    messages = [request_headers(**headers), body, response, answer]
    assert len(list(process(iter(messages), metadata=metadata, timeout=LIMIT_S))) == 4


def test_spans_continue_the_trace_and_tokens_are_counted(
    server: subprocess.Popen[str], receiver: Receiver
) -> None:
    assert server.stderr is not None
    serving = next(
        event
        for line in server.stderr
        if line.startswith("{")  # gRPC's own library writes to this stream, too
        and (event := json.loads(line))["event"] == "serving"
    )
    parent = f"00-{TRACE}-{SPAN}-01"
    with grpc.insecure_channel(f"127.0.0.1:{serving['port']}") as channel:
        talk(channel, {"traceparent": parent})
        talk(
            channel,
            {"traceparent": parent},
            [("traceparent", f"00-{TRACE}-{OTHER_SPAN}-01")],
        )
        talk(channel, {})
    server.terminate()
    server.wait(LIMIT_S)
    from_client, from_envoy, root = receiver.spans
    assert from_client.trace_id.hex() == from_envoy.trace_id.hex() == TRACE
    assert from_client.parent_span_id.hex() == SPAN
    assert from_envoy.parent_span_id.hex() == OTHER_SPAN
    assert root.parent_span_id == b""
    assert from_client.start_time_unix_nano <= from_client.end_time_unix_nano
    attributes = {
        a.key: a.value.string_value or a.value.int_value for a in from_client.attributes
    }
    # No attribute may suggest that the router runs inference.
    assert not [name for name in attributes if name.startswith("gen_ai.")]
    assert attributes["extproc.operation"] == "chat"
    assert attributes["extproc.model"] == "a-model"
    assert attributes["extproc.max_tokens"] == 77
    assert attributes["extproc.pool"] == "short"
    assert attributes["extproc.reason"] == "within_threshold"
    assert attributes["extproc.budget_tokens"] > 77
    assert "secret" not in str(receiver.spans)
    names = {a.key: a.value.string_value for a in receiver.resources[0].attributes}
    assert names["service.name"] == "the-router"
    (usage,) = (m for m in receiver.metrics if m.name == "gen_ai.client.token.usage")
    sums = {
        next(
            a.value.string_value
            for a in point.attributes
            if a.key == "gen_ai.token.type"
        ): point.sum
        for point in usage.histogram.data_points
    }
    assert sums == {"input": 27, "output": 12}
    for point in usage.histogram.data_points:
        labels = {a.key: a.value.string_value for a in point.attributes}
        assert labels["gen_ai.operation.name"] == "chat"
        assert labels["gen_ai.request.model"] == "a-model"
        assert labels["gen_ai.provider.name"] == "vllm"
    assert usage.unit == "{token}"
    assert list(usage.histogram.data_points[0].explicit_bounds)[:3] == [1, 4, 16]
    readme = (PROJECT / "extproc/server/README.md").read_text()
    section = readme.split("\n## Tracing\n")[1].split("\n## ")[0]
    documented = set(re.findall(r"`((?:extproc|gen_ai|service)\.[a-z_.]+)`", section))
    labelled = {
        a.key for point in usage.histogram.data_points for a in point.attributes
    }
    service = {name for name in names if name.startswith("service.")}
    assert documented == {*attributes, *labelled, *service, usage.name}


def test_another_protocol_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("opentelemetry.sdk.trace", reason="pip install '.[otel]'")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", "http/json")
    with pytest.raises(ConfigError, match=r"'http/json'; expected grpc or http/proto"):
        build_tracing(OtelConfig(enabled=True))


def test_a_client_s_names_are_no_labels_until_a_backend_answers_them() -> None:
    tracing_module = pytest.importorskip("extproc.server.observe.tracing")
    tracing = tracing_module.Tracing({"OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf"})

    def model(name: str, status: int) -> str:
        decision = Decision(
            Pool("short", 8192, 8192), Reason.WITHIN_THRESHOLD, model=name
        )
        answer: str = tracing._model(Observation(decision, Outcome(status)))
        return answer

    assert model("made-up", 404) == tracing_module.OTHER_MODEL
    names = [f"model-{n}" for n in range(tracing_module.MAX_MODELS + 1)]
    assert [model(name, 200) for name in names] == [
        *names[:-1],
        tracing_module.OTHER_MODEL,
    ]
    assert model(names[0], 500) == names[0]
    assert model("", 200) == tracing_module.OTHER_MODEL
