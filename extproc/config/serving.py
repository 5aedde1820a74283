"""Settings of the process: ports, state, recording, telemetry and log."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from enum import StrEnum

from extproc.config.accepted import ADDRESS, FILE, HOST_PORT, NOT_NEGATIVE, POSITIVE
from extproc.schema import RESTART, check


class Transport(StrEnum):
    """gRPC implementation."""

    GRPCIO = "grpcio"
    NATIVE = "native"


class StateStore(StrEnum):
    """Storage for learned state."""

    NONE = "none"
    DIRECTORY = "directory"
    REDIS = "redis"


class LogFormat(StrEnum):
    """Format of a log line."""

    TEXT = "text"
    JSON = "json"


class LogLevel(StrEnum):
    """Minimum level of a log line."""

    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


@dataclass(frozen=True, slots=True)
class TlsConfig:
    """TLS on the gRPC port. The files are reloaded when they change."""

    cert_file: str = field(metadata=FILE)
    """PEM file with the server's certificate, followed by its chain."""
    key_file: str = field(metadata=FILE)
    """PEM file with the private key."""
    client_ca_file: str | None = field(default=None, metadata=FILE)
    """PEM file of the CA that signs client certificates. Unset: none is required."""


@dataclass(frozen=True, slots=True)
class ServerConfig:
    """Addresses and limits of the server."""

    listen: str = field(default="0.0.0.0:9002", metadata=ADDRESS | RESTART)
    """gRPC address: HOST:PORT or unix:PATH. EXTPROC_LISTEN overrides it."""
    admin: str = field(default="127.0.0.1:9090", metadata=HOST_PORT | RESTART)
    """HTTP address of /metrics, /healthz, /readyz and /status. EXTPROC_ADMIN overrides
    it."""
    transport: Transport = field(default=Transport.NATIVE, metadata=RESTART)
    """`native` is this project's HTTP/2 transport; it uses a fraction of the CPU of
    `grpcio`, gRPC's own library. EXTPROC_TRANSPORT overrides it."""
    workers: int = field(
        default=1,
        metadata=check("from 1 to 64", lambda value: 1 <= value <= 64) | RESTART,
    )
    """Number of processes. Each is an endpoint for Envoy, at consecutive ports starting
    with that of `listen`, or at unix:PATH.0, .1 and so on. They share `admin` and the
    learned state. EXTPROC_WORKERS overrides it."""
    # With its envelope, a body has to fit into a gRPC message of less than 2 GiB.
    max_body_bytes: int = field(
        default=1 << 20,
        metadata=check("from 1 to 2000000000", lambda value: 1 <= value <= 2 * 10**9)
        | RESTART,
    )
    """Bodies above this size go to the largest pool unread. Keep it at or below Envoy's
    `request_body_buffer_limit`: a body between the two would hang in Envoy."""
    max_connections: int = field(default=1024, metadata=POSITIVE | RESTART)
    """Maximum connections to `listen` (`native` only); further ones are closed and
    counted. 64 file descriptors always remain reserved for other uses."""
    drain_timeout_s: float = field(default=10.0, metadata=NOT_NEGATIVE)
    """Seconds that open streams have to finish at shutdown."""
    lame_duck_s: float = field(default=5.0, metadata=NOT_NEGATIVE)
    """Maximum seconds to keep accepting streams after SIGTERM, while the health check
    already fails; ends earlier if no stream arrives for half a second. Envoy needs one
    health check interval to switch, and a refused stream would lose its decision."""
    body_timeout_s: float = field(default=5.0, metadata=POSITIVE)
    """Seconds to wait for a body requested from Envoy. After that the request continues
    to the default route without a decision: either its client is slow, or Envoy has a
    limit below `max_body_bytes` and the request would hang."""
    tls: TlsConfig | None = field(default=None, metadata=RESTART)
    """Unset: plain text, for a loopback address, a mesh or a Unix socket."""


@dataclass(frozen=True, slots=True)
class StateConfig:
    """Storage of learned state, shared by processes and replicas."""

    store: StateStore = StateStore.NONE
    path: str | None = field(default=None, metadata=FILE)
    """`directory`: path of the directory, shared by the processes of one machine."""
    url: str | None = field(
        default=None,
        metadata=check(
            "redis://, rediss:// or unix:// and an address",
            lambda value: re.match(r"(rediss?|unix)://.", value),
            secret=True,
        ),
    )
    """`redis`: URL of Redis or Valkey. EXTPROC_STATE_URL overrides it, since it may
    contain a password."""
    key_prefix: str = field(default="token-budget-router:", metadata=FILE)
    """`redis`: prefix of the key."""
    interval_s: float = field(default=5.0, metadata=POSITIVE)
    """Seconds between two exchanges with the store; a crash loses at most what was
    learned in between."""


@dataclass(frozen=True, slots=True)
class ApiConfig:
    """The Decide and Observe API for gateways without ext_proc (protos/tokenbudget)."""

    http: bool = False
    """Serve the API as JSON on the admin port too, in addition to gRPC on the gRPC
    port. All clients of the admin port can then teach the router."""


@dataclass(frozen=True, slots=True)
class RecordingConfig:
    """Recording of observed decisions (numbers only) for `replay` and `plan`."""

    file: str | None = field(default=None, metadata=FILE)
    """File to append to, one JSON line per decision. Unset: no recording."""
    max_bytes: int = field(default=1 << 30, metadata=POSITIVE)
    """File size at which recording stops; a line takes 0.4 kB."""


@dataclass(frozen=True, slots=True)
class OtelConfig:
    """OpenTelemetry over OTLP; needs the extra `otel`."""

    enabled: bool = False
    """Export a span per decision, and token usage. The SDK's variables configure the
    destination and the sampling: OTEL_EXPORTER_OTLP_ENDPOINT,
    OTEL_EXPORTER_OTLP_PROTOCOL (`grpc` or `http/protobuf`), OTEL_TRACES_SAMPLER,
    OTEL_SERVICE_NAME."""


@dataclass(frozen=True, slots=True)
class LogConfig:
    """Logging to standard error."""

    level: LogLevel = LogLevel.INFO
    """Minimum level of a log line. EXTPROC_LOG_LEVEL overrides it."""
    format: LogFormat = LogFormat.TEXT
    wire: bool = False
    """Log each HTTP/2 frame of new connections, without its content. `native` only;
    with `grpcio` set GRPC_VERBOSITY=debug and GRPC_TRACE=http."""
