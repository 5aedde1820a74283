"""Configuration: a YAML file to frozen dataclasses, or the reason why not."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any, Literal

import yaml

from extproc import strict_yaml
from extproc.address import Address
from extproc.schema import RESTART, ConfigError, as_document, build, check

__all__ = ["Config", "ConfigError", "as_document", "load_config"]


class Mode(StrEnum):
    """What becomes of the decisions."""

    ROUTE = "route"
    SHADOW = "shadow"


class Transport(StrEnum):
    """What speaks gRPC on the wire."""

    GRPCIO = "grpcio"
    NATIVE = "native"


class EstimatorName(StrEnum):
    """Which estimator routes."""

    TEXT = "text"
    EMA_TEXT = "ema-text"
    EMA = "ema"
    BYTES_OVER_FOUR = "bytes/4"
    SEMANTIC_ROUTER = "semantic-router"


class StateStore(StrEnum):
    """Where learned state is kept."""

    NONE = "none"
    DIRECTORY = "directory"
    REDIS = "redis"


class LogFormat(StrEnum):
    TEXT = "text"
    JSON = "json"


class LogLevel(StrEnum):
    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


def _is_address(value: str, unix: bool) -> bool:
    try:
        address = Address.parse(value)
    except ValueError:
        return False
    return unix or not address.is_unix


_POSITIVE = check("a number above 0", lambda value: 0 < value < math.inf)
_NOT_NEGATIVE = check("0 or more", lambda value: 0 <= value < math.inf)
_ADDRESS = check("HOST:PORT or unix:PATH", lambda value: _is_address(value, unix=True))
_HOST_PORT = check("HOST:PORT", lambda value: _is_address(value, unix=False))
_HEADER = check(
    "a header name in lower case",
    lambda value: re.fullmatch(r"[a-z0-9!#$%&'*+.^_`|~-]+", value),
)
_PREFIXES = check(
    'a list of paths like /openai/v1, or ""',
    lambda values: (
        bool(values) and all(re.fullmatch(r"(/[^\s/?#]+)*/?", path) for path in values)
    ),
)
_NAME = check(
    "letters, digits, - and _, at most 63",
    lambda value: re.fullmatch(r"[A-Za-z0-9_-]{1,63}", value),
)


_MODEL_NAME = check(
    "1 to 200 characters of printable ASCII without blanks",
    lambda value: re.fullmatch(r"[!-~]{1,200}", value),
)
_MODEL_NAMES = check(
    f"a list of names, each {_MODEL_NAME['accepted']}",
    lambda values: all(_MODEL_NAME["valid"](value) for value in values),
)
OTHER_MODEL = "other"
"""The name under which models that are not configured are counted: no model's."""
_FILE = check("a file name", lambda value: value and "\0" not in value)
_BASE_URLS = check(
    "a list of http://HOST:PORT or https://HOST:PORT",
    lambda values: all(re.fullmatch(r"https?://[^\s/@]+/?", url) for url in values),
)


@dataclass(frozen=True, slots=True)
class TlsConfig:
    """TLS on the gRPC port. The files are read again when they change."""

    cert_file: str = field(metadata=_FILE)
    """PEM: the server's certificate, then those that lead to its root."""
    key_file: str = field(metadata=_FILE)
    """PEM: its private key."""
    client_ca_file: str | None = field(default=None, metadata=_FILE)
    """PEM: whose clients are let in. Unset: any client is."""


@dataclass(frozen=True, slots=True)
class ServerConfig:
    """Where and how the server listens."""

    listen: str = field(default="0.0.0.0:9002", metadata=_ADDRESS | RESTART)
    """gRPC: HOST:PORT or unix:PATH. EXTPROC_LISTEN overrides it."""
    admin: str = field(default="127.0.0.1:9090", metadata=_HOST_PORT | RESTART)
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
    max_body_bytes: int = field(default=1 << 20, metadata=_POSITIVE | RESTART)
    """Bodies above it go to the largest pool unread. Keep it at or below Envoy's
    `request_body_buffer_limit`: above it a request hangs there."""
    max_connections: int = field(default=1024, metadata=_POSITIVE | RESTART)
    """Connections to `listen` at once (`native`); further ones are closed, and counted.
    64 file descriptors are kept back from them, whatever the system allows."""
    drain_timeout_s: float = field(default=10.0, metadata=_NOT_NEGATIVE)
    """Before it ends, open streams have this long to finish."""
    lame_duck_s: float = field(default=5.0, metadata=_NOT_NEGATIVE)
    """After SIGTERM the health check says no, and new streams are still taken until
    none has come for half a second, at most this long. Envoy takes a health check's
    interval to look elsewhere; refused streams would lose their decisions."""
    body_timeout_s: float = field(default=5.0, metadata=_POSITIVE)
    """A body that Envoy was asked for and has not handed over by then is given up: the
    request goes on undecided, to the default route. Either its client is slow, or Envoy
    has a limit below `max_body_bytes`, and the request would hang."""
    tls: TlsConfig | None = field(default=None, metadata=RESTART)
    """Unset: plain text, for a loopback, a mesh or a Unix socket."""


@dataclass(frozen=True, slots=True)
class PoolConfig:
    """One pool of vLLM instances."""

    name: str = field(metadata=_NAME)
    """The value of the `x-llm-pool` header."""
    max_model_len: int = field(metadata=_POSITIVE)
    """vLLM's `--max-model-len` in this pool."""
    threshold_tokens: int | None = field(default=None, metadata=_POSITIVE)
    """Budgets up to and including it go here; unset: `max_model_len`."""
    endpoints: tuple[str, ...] = field(default=(), metadata=_BASE_URLS)
    """The vLLM servers, to ask for their load and limits: of a name with several
    addresses, each. Unset: they are not asked."""
    api_key_file: str | None = field(default=None, metadata=_FILE)
    """Contains the key that the servers require (vLLM's `--api-key`). Read before each
    request."""


DEFAULT_POOLS = (PoolConfig("short", 8192), PoolConfig("long", 65536))


class UnknownLength(StrEnum):
    """What happens to a request whose headers do not give its body's length."""

    READ = "read"
    DEFAULT_POOL = "default_pool"


@dataclass(frozen=True, slots=True)
class RequestsConfig:
    """Which requests are read."""

    unknown_length: UnknownLength = UnknownLength.READ
    """A body without `content-length` (chunked, or HTTP/2): `read` asks Envoy for it,
    which answers 413 if it is above `request_body_buffer_limit`. `default_pool` sends
    it there unread, at any length."""
    path_prefixes: tuple[str, ...] | None = field(default=None, metadata=_PREFIXES)
    """What stands before the path of an API, with or without its `/v1`; `""` is
    nothing. Unset: any prefix, as in `/team/v1/chat/completions`."""
    responses_pool: str | None = field(default=None, metadata=_NAME)
    """The pool whose vLLM keeps responses (`VLLM_ENABLE_RESPONSES_API_STORE`): takes
    all of `/v1/responses` but what says `store: false`. Unset: the largest pool takes
    what says `store: true`, `background: true` or goes on from a kept response."""
    retry_cut_answers: bool = False
    """Let Envoy ask the largest pool again for an answer that a smaller pool's window
    cut though its client allowed more. Streams are not: they have reached the client.
    Each costs what the cut answer did, in time and tokens: at the most
    `output.truncation_risk` of the answers."""


@dataclass(frozen=True, slots=True)
class CategoryConfig:
    """Where a request's category may be hinted."""

    header: str = field(default="x-llm-category", metadata=_HEADER)
    """Request header with a hint; values outside the known categories are ignored."""
    hints: tuple[str, ...] = ()
    """Categories accepted beside the built-in ones."""


@dataclass(frozen=True, slots=True)
class EstimatorConfig:
    """What estimates prompt tokens."""

    name: EstimatorName = EstimatorName.TEXT
    """`text` learns from text features, with a bound at the stated risk; `ema-text` is
    a ratio of decoded text, `ema` the papers' own, `bytes/4` and `semantic-router` are
    there to compare with."""
    beta: float = field(
        default=0.95, metadata=check("between 0 and 1", lambda value: 0 < value < 1)
    )
    """`ema`: weight of the old ratio against a new sample."""
    gamma: float = field(default=1.0, metadata=_NOT_NEGATIVE)
    """`ema`: deviations taken off the ratio, for safety."""
    models: int = field(
        default=64, metadata=check("from 1 to 10000", lambda value: 1 <= value <= 10000)
    )
    """Without `models`: names of models that are learned apart. Requests for the others
    are learned as one, `other`, until a name has been idle for 20,000 responses. With
    `models`, each of them is learned apart."""


@dataclass(frozen=True, slots=True)
class OutputConfig:
    """How much output a request is allowed for."""

    default_tokens: int = field(default=512, metadata=_POSITIVE)
    """Where the client set no limit, until answers have been seen."""
    quantile: float = field(
        default=0.95, metadata=check("between 0 and 1", lambda value: 0 < value < 1)
    )
    """Share of the answers to such requests that the learned allowance covers."""
    ceiling_tokens: int = field(default=4096, metadata=_POSITIVE)
    """The most that is learned; at least `default_tokens`."""
    truncation_risk: float = field(
        default=0.005,
        metadata=check("at least 0 and below 0.5", lambda value: 0 <= value < 0.5),
    )
    """Share of the answers that may exceed what is reserved for them under a limit that
    the client declared; the window of a smaller pool may cut these, though their client
    allowed more. 0: reserve all that clients declare."""


@dataclass(frozen=True, slots=True)
class ConversationsConfig:
    """Memory of conversations: a later turn starts from the count of the one before."""

    entries: int = field(default=65_536, metadata=_NOT_NEGATIVE)
    """Prompts whose counts are remembered, 8 bytes each, by all workers together; the
    oldest are forgotten. 0: none. It takes every response to be observed: with
    `feedback.access_log` or `feedback.sample: all`."""


@dataclass(frozen=True, slots=True)
class RiskConfig:
    """How sure to be before a smaller pool is chosen."""

    under_estimate_rate: float = field(
        default=0.01,
        metadata=check("above 0 and below 0.5", lambda value: 0 < value < 0.5),
    )
    """Share of the requests whose prompt may exceed the bound that routing uses."""
    every_estimator: bool = False
    """Hold that rate with every estimator, not with `text` only: the others' point
    estimates are otherwise their bounds, as published."""


@dataclass(frozen=True, slots=True)
class MediaConfig:
    """Prompt tokens expected of parts of unknown size, before a model has answered."""

    image_tokens: int = field(default=1024, metadata=_NOT_NEGATIVE)
    audio_tokens: int = field(default=1500, metadata=_NOT_NEGATIVE)
    file_tokens: int = field(default=2048, metadata=_NOT_NEGATIVE)


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """One base model: the pools that serve it, and what differs for it."""

    pools: tuple[PoolConfig, ...]
    """Its pools, in order of `max_model_len`."""
    adapters: tuple[str, ...] = field(default=(), metadata=_MODEL_NAMES)
    """Other names that clients ask by: LoRA adapters, exact or with `*` and `?`. They
    are routed and learned as the model. What its servers list is known without."""
    output: OutputConfig | None = None
    """Unset: the fleet's; of one that is set, the keys that are not."""
    risk: RiskConfig | None = None
    """Unset: the fleet's."""
    media: MediaConfig | None = None
    """Unset: the fleet's; of one that is set, the keys that are not."""


@dataclass(frozen=True, slots=True)
class DefaultModelConfig:
    """Where requests for models that are not configured go."""

    default: str = field(metadata=_MODEL_NAME)
    """The model whose pools take them."""


@dataclass(frozen=True, slots=True)
class ModelNameConfig:
    """Where a request's model is read from."""

    header: str | None = field(default=None, metadata=_HEADER)
    """Request header with the name, set by a parser before this one, such as
    `x-gateway-model-name`; it counts before the body's. Envoy must strip the clients'
    own. Unset: the body names the model."""


@dataclass(frozen=True, slots=True)
class FeedbackConfig:
    """Which responses are looked at for their usage."""

    sample: float | Literal["auto", "all"] = field(
        default="auto",
        metadata=check(
            "auto, all, or a share between 0 and 1",
            lambda value: isinstance(value, str) or 0 <= value <= 1,
        ),
    )
    """`auto`: the first 200 responses of a model, and 20 of each of its categories,
    then a thin sample that thickens near a pool's limit and when errors grow."""
    access_log: bool = False
    """Learn from Envoy's access log (envoy/access_log.yaml): of every response, and
    none is looked at as it passes, unless `sample` is `all` or a share."""
    inject_usage: bool = False
    """Ask for usage where a sampled stream's client did not; the extra chunk is taken
    out on the way back."""


@dataclass(frozen=True, slots=True)
class LoadConfig:
    """When a pool counts as under pressure, so that requests spill to a larger one."""

    interval_s: float = field(default=1.0, metadata=_POSITIVE)
    """Between two questions to an endpoint's `/metrics`."""
    stale_after_s: float = field(default=5.0, metadata=_POSITIVE)
    """Older answers do not count: the pool's pressure is then not known."""
    waiting_requests: float = field(default=8.0, metadata=_POSITIVE)
    """In an endpoint's queue, on average: from there on there is pressure."""
    kv_cache_usage: float = field(
        default=0.97, metadata=check("above 0, at most 1", lambda value: 0 < value <= 1)
    )
    """Share of the KV cache in use, on average, from which there is pressure."""
    relief: float = field(
        default=0.5, metadata=check("between 0 and 1", lambda value: 0 <= value < 1)
    )
    """Pressure ends where both are at or below this share of their limit."""


@dataclass(frozen=True, slots=True)
class StateConfig:
    """Where what was learned is kept, and shared by processes and replicas."""

    store: StateStore = StateStore.NONE
    path: str | None = field(default=None, metadata=_FILE)
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
    key_prefix: str = field(default="token-budget-router:", metadata=_FILE)
    """`redis`: what stands before the name of the key."""
    interval_s: float = field(default=5.0, metadata=_POSITIVE)
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

    file: str | None = field(default=None, metadata=_FILE)
    """A JSON line each is appended here. Unset: nothing is recorded."""
    max_bytes: int = field(default=1 << 30, metadata=_POSITIVE)
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


@dataclass(frozen=True, slots=True)
class Config:
    """All settings; the defaults run."""

    mode: Mode = Mode.ROUTE
    """`shadow` decides, learns, counts and says so in the metadata, but leaves every
    request on the route that it has."""
    server: ServerConfig = ServerConfig()
    pools: tuple[PoolConfig, ...] = DEFAULT_POOLS
    """The pools, in order of `max_model_len`, if all serve one model."""
    models: Mapping[str, ModelConfig] = field(default_factory=dict)
    """Base models by name, each with pools of its own, in place of `pools`."""
    unknown_model: Literal["pass"] | DefaultModelConfig = "pass"
    """With `models`, a request for none of them: `pass` leaves it on the route that it
    has, with no header; `{default: NAME}` sends it to that model's pools."""
    model: ModelNameConfig = ModelNameConfig()
    requests: RequestsConfig = RequestsConfig()
    category: CategoryConfig = CategoryConfig()
    estimator: EstimatorConfig = EstimatorConfig()
    output: OutputConfig = OutputConfig()
    risk: RiskConfig = RiskConfig()
    conversations: ConversationsConfig = ConversationsConfig()
    media: MediaConfig = MediaConfig()
    feedback: FeedbackConfig = FeedbackConfig()
    load: LoadConfig = LoadConfig()
    state: StateConfig = field(default=StateConfig(), metadata=RESTART)
    api: ApiConfig = field(default=ApiConfig(), metadata=RESTART)
    recording: RecordingConfig = field(default=RecordingConfig(), metadata=RESTART)
    otel: OtelConfig = field(default=OtelConfig(), metadata=RESTART)
    log: LogConfig = LogConfig()

    @property
    def all_pools(self) -> tuple[PoolConfig, ...]:
        """The pools of every model."""
        own = (pool for model in self.models.values() for pool in model.pools)
        return (*self.pools, *own)


ENVIRONMENT = {
    "EXTPROC_LISTEN": ("server", "listen"),
    "EXTPROC_ADMIN": ("server", "admin"),
    "EXTPROC_TRANSPORT": ("server", "transport"),
    "EXTPROC_WORKERS": ("server", "workers"),
    "EXTPROC_LOG_LEVEL": ("log", "level"),
    "EXTPROC_STATE_URL": ("state", "url"),
}
"""Variables that override the file."""


def load_config(text: str, environment: Mapping[str, str]) -> Config:
    """Read a configuration.

    Args:
        text: YAML; empty for the defaults.
        environment: looked up for the ``ENVIRONMENT`` overrides.

    Raises:
        ConfigError: not YAML, an unknown key, or a value that is not accepted.
    """
    document = _read_document(text)
    for variable, (section, key) in ENVIRONMENT.items():
        value = environment.get(variable)
        if value:
            if document.get(section) is None:
                document[section] = {}
            target = document[section]
            if isinstance(target, dict):
                target[key] = _read_variable(key, value)
    _inherit(document)
    config: Config = build(Config, document)
    if config.models:
        config = replace(config, pools=())
        _check_models(config)
    else:
        _check_pools(config.pools)
    if config.output.ceiling_tokens < config.output.default_tokens:
        raise ConfigError(
            f"output.ceiling_tokens: {config.output.ceiling_tokens}; accepted: at "
            f"least output.default_tokens ({config.output.default_tokens})"
        )
    _check_responses_pool(config)
    _check_state(config.state)
    _check_workers(config.server)
    for hint in config.category.hints:
        if not _NAME["valid"](hint):
            raise ConfigError(
                f"category.hints: {hint!r}; accepted: {_NAME['accepted']}"
            )
    return config


def _read_document(text: str) -> dict[str, Any]:
    try:
        document = strict_yaml.load(text)
    except strict_yaml.DuplicateKeyError as error:
        raise ConfigError(str(error)) from None
    except yaml.YAMLError as error:
        raise ConfigError(f"not YAML: {' '.join(str(error).split())}") from None
    document = {} if document is None else document
    if not isinstance(document, dict):
        raise ConfigError(f"a mapping of settings is accepted, got {document!r}")
    return document


def _read_variable(key: str, value: str) -> str | int:
    if key == "workers" and value.isdecimal():
        return int(value)
    return value.lower() if key in ("level", "transport") else value


_INHERITED = ("output", "risk", "media")


def _inherit(document: dict[str, Any]) -> None:
    """Complete the sections of each model by the fleet's, and check both are not given.

    Raises:
        ConfigError: ``pools`` beside ``models``.
    """
    models = document.get("models")
    if not isinstance(models, dict) or not models:
        return
    if document.get("pools"):
        raise ConfigError("pools: given beside models; expected one of the two")
    for model in models.values():
        for section in _INHERITED:
            own = model.get(section) if isinstance(model, dict) else None
            common = document.get(section)
            if isinstance(own, dict) and isinstance(common, dict):
                model[section] = common | own


def _check_models(config: Config) -> None:
    names: dict[str, str] = {}
    pools: set[str] = set()
    for model, each in config.models.items():
        key = f"models.{model}"
        if not _MODEL_NAME["valid"](model) or model == OTHER_MODEL:
            raise ConfigError(
                f"{key}: {model!r}; expected {_MODEL_NAME['accepted']}, not "
                f"{OTHER_MODEL!r}"
            )
        for name in (model, *each.adapters):
            if name in names:
                raise ConfigError(
                    f"{key}: {name!r}; expected a name that {names[name]} has not"
                )
            names[name] = key
        _check_pools(each.pools, f"{key}.", pools)
        output = each.output
        if output is not None and output.ceiling_tokens < output.default_tokens:
            raise ConfigError(
                f"{key}.output.ceiling_tokens: {output.ceiling_tokens}; expected at "
                f"least output.default_tokens ({output.default_tokens})"
            )
    default = config.unknown_model
    if isinstance(default, DefaultModelConfig) and default.default not in config.models:
        raise ConfigError(
            f"unknown_model.default: {default.default!r}; expected one of "
            f"{', '.join(config.models)}"
        )


def _check_pools(
    pools: tuple[PoolConfig, ...], path: str = "", taken: set[str] | None = None
) -> None:
    """Check the pools of one model.

    Args:
        path: what stands before ``pools``.
        taken: names of the pools of other models; these are added.
    """
    if not pools:
        raise ConfigError(f"{path}pools: []; accepted: one pool or more")
    previous = 0
    names: set[str] = set() if taken is None else taken
    for position, pool in enumerate(pools):
        key = f"{path}pools[{position}]"
        if pool.name in names:
            raise ConfigError(f"{key}.name: {pool.name!r}; accepted: a name of its own")
        names.add(pool.name)
        if pool.max_model_len <= previous:
            raise ConfigError(
                f"{key}.max_model_len: {pool.max_model_len}; accepted: more than the "
                f"pool before it ({previous}), as the smallest comes first"
            )
        if (pool.threshold_tokens or 0) > pool.max_model_len:
            raise ConfigError(
                f"{key}.threshold_tokens: {pool.threshold_tokens}; accepted: at most "
                f"max_model_len ({pool.max_model_len})"
            )
        previous = pool.max_model_len


def _check_responses_pool(config: Config) -> None:
    name = config.requests.responses_pool
    names = [pool.name for pool in config.all_pools]
    if name is not None and name not in names:
        raise ConfigError(
            f"requests.responses_pool: {name!r}; expected one of {', '.join(names)}"
        )


def _check_workers(server: ServerConfig) -> None:
    listen = Address.parse(server.listen)
    if server.workers == 1 or listen.is_unix:
        return
    last = (1 << 16) - server.workers
    if not 0 < listen.port <= last:
        raise ConfigError(
            f"server.listen: {server.listen!r}; accepted with {server.workers} "
            f"workers: a port from 1 to {last}"
        )


def _check_state(state: StateConfig) -> None:
    if state.store is StateStore.DIRECTORY and state.path is None:
        raise ConfigError("state.path: missing; state.store: directory needs it")
    if state.store is StateStore.REDIS and state.url is None:
        raise ConfigError("state.url: missing; state.store: redis needs it")
