"""Settings of the process: its ports, state, recording, telemetry and log."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from enum import StrEnum

from extproc.config.accepted import ADDRESS, FILE, HOST_PORT, NOT_NEGATIVE, POSITIVE
from extproc.schema import RESTART, check


class Transport(StrEnum):
    """What speaks gRPC on the wire."""

    GRPCIO = "grpcio"
    NATIVE = "native"


class StateStore(StrEnum):
    """Where learned state is kept."""

    NONE = "none"
    DIRECTORY = "directory"
    REDIS = "redis"


class LogFormat(StrEnum):
    """How a line of the log is written."""

    TEXT = "text"
    JSON = "json"


class LogLevel(StrEnum):
    """The least that is logged."""

    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


@dataclass(frozen=True, slots=True)
class TlsConfig:
    """TLS on the gRPC port. The files are read again when they change."""

    cert_file: str = field(metadata=FILE)
    """PEM: the server's certificate, then those that lead to its root."""
    key_file: str = field(metadata=FILE)
    """PEM: its private key."""
    client_ca_file: str | None = field(default=None, metadata=FILE)
    """PEM: whose clients are let in. Unset: any client is."""


@dataclass(frozen=True, slots=True)
class ServerConfig:
    """Where and how the server listens."""

    listen: str = field(default="0.0.0.0:9002", metadata=ADDRESS | RESTART)
    """gRPC: HOST:PORT or unix:PATH. EXTPROC_LISTEN overrides it."""
    admin: str = field(default="127.0.0.1:9090", metadata=HOST_PORT | RESTART)
    """HTTP: /metrics, /healthz, /readyz, /status. EXTPROC_ADMIN overrides it."""
    transport: Transport = field(default=Transport.NATIVE, metadata=RESTART)
    """`native` is our HTTP/2, at a fraction of the CPU of gRPC's own library, `grpcio`.
    EXTPROC_TRANSPORT overrides it."""
    workers: int = field(
        default=1,
        metadata=check("from 1 to 64", lambda value: 1 <= value <= 64) | RESTART,
    )
    """Processes, each an endpoint for Envoy: at `listen`'s port and those that follow
    it, or at unix:PATH.0, .1 and so on. They share `admin` and what they learn.
    EXTPROC_WORKERS overrides it."""
    max_body_bytes: int = field(default=1 << 20, metadata=POSITIVE | RESTART)
    """Bodies above it go to the largest pool unread. Keep it at or below Envoy's
    `request_body_buffer_limit`: above it a request hangs there."""
    max_connections: int = field(default=1024, metadata=POSITIVE | RESTART)
    """Connections to `listen` at once (`native`); further ones are closed, and counted.
    64 file descriptors are kept back from them, whatever the system allows."""
    drain_timeout_s: float = field(default=10.0, metadata=NOT_NEGATIVE)
    """Before it ends, open streams have this long to finish."""
    lame_duck_s: float = field(default=5.0, metadata=NOT_NEGATIVE)
    """After SIGTERM the health check says no, and new streams are still taken until
    none has come for half a second, at most this long. Envoy takes a health check's
    interval to look elsewhere; refused streams would lose their decisions."""
    body_timeout_s: float = field(default=5.0, metadata=POSITIVE)
    """A body that Envoy was asked for and has not handed over by then is given up: the
    request goes on undecided, to the default route. Either its client is slow, or Envoy
    has a limit below `max_body_bytes`, and the request would hang."""
    tls: TlsConfig | None = field(default=None, metadata=RESTART)
    """Unset: plain text, for a loopback, a mesh or a Unix socket."""


@dataclass(frozen=True, slots=True)
class StateConfig:
    """Where what was learned is kept, and shared by processes and replicas."""

    store: StateStore = StateStore.NONE
    path: str | None = field(default=None, metadata=FILE)
    """`directory`: the directory, shared by the processes of one machine."""
    url: str | None = field(
        default=None,
        metadata=check(
            "redis://, rediss:// or unix:// and an address",
            lambda value: re.match(r"(rediss?|unix)://.", value),
            secret=True,
        ),
    )
    """`redis`: Redis or Valkey. EXTPROC_STATE_URL overrides it: it may hold a
    password."""
    key_prefix: str = field(default="token-budget-router:", metadata=FILE)
    """`redis`: what stands before the name of the key."""
    interval_s: float = field(default=5.0, metadata=POSITIVE)
    """Between two exchanges with the store: what a crash loses at most."""


@dataclass(frozen=True, slots=True)
class ApiConfig:
    """Decide and Observe, for gateways without ext_proc (protos/tokenbudget)."""

    http: bool = False
    """Answer them as JSON on the admin port too; gRPC always does, on its own port.
    Anyone who reaches that port can then teach the router."""


@dataclass(frozen=True, slots=True)
class RecordingConfig:
    """Observed decisions in a file, numbers only, for `extproc replay` and `plan`."""

    file: str | None = field(default=None, metadata=FILE)
    """A JSON line each is appended here. Unset: nothing is recorded."""
    max_bytes: int = field(default=1 << 30, metadata=POSITIVE)
    """Recording ends at this size; a line takes 0.4 kB."""


@dataclass(frozen=True, slots=True)
class OtelConfig:
    """OpenTelemetry over OTLP; needs the extra `otel`."""

    enabled: bool = False
    """A span a decision, and token usage. The SDK's variables say where to and how
    many: OTEL_EXPORTER_OTLP_ENDPOINT, OTEL_EXPORTER_OTLP_PROTOCOL (`grpc` or
    `http/protobuf`), OTEL_TRACES_SAMPLER, OTEL_SERVICE_NAME."""


@dataclass(frozen=True, slots=True)
class LogConfig:
    """Logging to standard error."""

    level: LogLevel = LogLevel.INFO
    """EXTPROC_LOG_LEVEL overrides it."""
    format: LogFormat = LogFormat.TEXT
    wire: bool = False
    """A line for each HTTP/2 frame, in and out, of connections made from now on; no
    contents. `native` only: with `grpcio` set GRPC_VERBOSITY=debug, GRPC_TRACE=http."""
