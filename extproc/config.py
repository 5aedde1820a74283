"""Configuration: a YAML file to frozen dataclasses, or the reason why not.

The dataclasses are the schema: a key is a field, its default is the field's. An
unknown key is an error that suggests the near one; every error names the key, the
value and what is accepted.
"""

from __future__ import annotations

import dataclasses
import difflib
import re
import types
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Literal

import yaml


class ConfigError(Exception):
    """The operator's mistake: one line that names key, value and what is accepted."""


class Transport(StrEnum):
    """What speaks gRPC on the wire."""

    GRPCIO = "grpcio"


class EstimatorName(StrEnum):
    """Which estimator routes."""

    TEXT = "text"
    EMA_TEXT = "ema-text"
    EMA = "ema"
    BYTES_OVER_FOUR = "bytes/4"
    SEMANTIC_ROUTER = "semantic-router"


class LogFormat(StrEnum):
    TEXT = "text"
    JSON = "json"


class LogLevel(StrEnum):
    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


def _check(accepted: str, valid: Callable[[Any], object]) -> dict[str, Any]:
    return {"accepted": accepted, "valid": valid}


_POSITIVE = _check("a number above 0", lambda value: value > 0)
_NOT_NEGATIVE = _check("0 or more", lambda value: value >= 0)
_ADDRESS = _check(
    "HOST:PORT or unix:PATH",
    lambda value: re.fullmatch(r"unix:.+|(\[[^\]]+\]|[^:\s]+):\d{1,5}", value),
)
_HEADER = _check(
    "a header name in lower case",
    lambda value: re.fullmatch(r"[a-z0-9!#$%&'*+.^_`|~-]+", value),
)
_NAME = _check(
    "letters, digits, - and _, at most 63",
    lambda value: re.fullmatch(r"[A-Za-z0-9_-]{1,63}", value),
)


@dataclass(frozen=True, slots=True)
class ServerConfig:
    """Where and how the server listens."""

    listen: str = field(default="0.0.0.0:9002", metadata=_ADDRESS)
    """gRPC: HOST:PORT or unix:PATH. EXTPROC_LISTEN overrides it."""
    admin: str = field(default="127.0.0.1:9090", metadata=_ADDRESS)
    """HTTP: /metrics, /healthz, /readyz, /status. EXTPROC_ADMIN overrides it."""
    transport: Transport = Transport.GRPCIO
    """EXTPROC_TRANSPORT overrides it."""
    max_body_bytes: int = field(default=1 << 20, metadata=_POSITIVE)
    """Bodies above it go to the largest pool unread. Keep it at or below Envoy's
    `request_body_buffer_limit`: above it a request hangs there."""
    drain_timeout_s: float = field(default=10.0, metadata=_NOT_NEGATIVE)
    """After SIGTERM, open streams have this long to finish."""


@dataclass(frozen=True, slots=True)
class PoolConfig:
    """One pool of vLLM instances."""

    name: str = field(metadata=_NAME)
    """The value of the `x-llm-pool` header."""
    max_model_len: int = field(metadata=_POSITIVE)
    """vLLM's `--max-model-len` in this pool."""
    threshold_tokens: int | None = field(default=None, metadata=_POSITIVE)
    """Budgets up to and including it go here; unset: `max_model_len`."""


DEFAULT_POOLS = (PoolConfig("short", 8192), PoolConfig("long", 65536))


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
        default=0.95, metadata=_check("between 0 and 1", lambda value: 0 < value < 1)
    )
    """`ema`: weight of the old ratio against a new sample."""
    gamma: float = field(default=1.0, metadata=_NOT_NEGATIVE)
    """`ema`: deviations taken off the ratio, for safety."""


@dataclass(frozen=True, slots=True)
class OutputConfig:
    """How much output a request is allowed for."""

    default_tokens: int = field(default=512, metadata=_POSITIVE)
    """Where the client set no limit, until answers have been seen."""
    quantile: float = field(
        default=0.95, metadata=_check("between 0 and 1", lambda value: 0 < value < 1)
    )
    """Share of the answers to such requests that the learned allowance covers."""
    ceiling_tokens: int = field(default=4096, metadata=_POSITIVE)
    """The most that is learned; at least `default_tokens`."""


@dataclass(frozen=True, slots=True)
class RiskConfig:
    """How sure to be before a smaller pool is chosen."""

    under_estimate_rate: float = field(
        default=0.01,
        metadata=_check("above 0 and below 0.5", lambda value: 0 < value < 0.5),
    )
    """Share of the requests whose prompt may exceed the bound that routing uses."""


@dataclass(frozen=True, slots=True)
class MediaConfig:
    """Prompt tokens charged for parts that are not text."""

    image_tokens: int = field(default=1024, metadata=_NOT_NEGATIVE)
    audio_tokens: int = field(default=1500, metadata=_NOT_NEGATIVE)
    file_tokens: int = field(default=2048, metadata=_NOT_NEGATIVE)


@dataclass(frozen=True, slots=True)
class FeedbackConfig:
    """Which responses are looked at for their usage."""

    sample: float | Literal["auto", "all"] = field(
        default="auto",
        metadata=_check(
            "auto, all, or a share between 0 and 1",
            lambda value: isinstance(value, str) or 0 <= value <= 1,
        ),
    )
    """`auto`: every response of a category until it is known, then a thin sample."""
    inject_usage: bool = False
    """Ask for usage where a sampled stream's client did not; the extra chunk is taken
    out on the way back."""


@dataclass(frozen=True, slots=True)
class LogConfig:
    """Logging to standard error."""

    level: LogLevel = LogLevel.INFO
    """EXTPROC_LOG_LEVEL overrides it."""
    format: LogFormat = LogFormat.TEXT


@dataclass(frozen=True, slots=True)
class Config:
    """All settings; the defaults run."""

    server: ServerConfig = ServerConfig()
    pools: tuple[PoolConfig, ...] = DEFAULT_POOLS
    category: CategoryConfig = CategoryConfig()
    estimator: EstimatorConfig = EstimatorConfig()
    output: OutputConfig = OutputConfig()
    risk: RiskConfig = RiskConfig()
    media: MediaConfig = MediaConfig()
    feedback: FeedbackConfig = FeedbackConfig()
    log: LogConfig = LogConfig()


ENVIRONMENT = {
    "EXTPROC_LISTEN": ("server", "listen"),
    "EXTPROC_ADMIN": ("server", "admin"),
    "EXTPROC_TRANSPORT": ("server", "transport"),
    "EXTPROC_LOG_LEVEL": ("log", "level"),
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
    try:
        document = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"not YAML: {' '.join(str(error).split())}") from None
    document = {} if document is None else document
    if not isinstance(document, dict):
        raise ConfigError(f"a mapping of settings is accepted, got {document!r}")
    for variable, (section, key) in ENVIRONMENT.items():
        value = environment.get(variable)
        if value:
            target = document.setdefault(section, {})
            if isinstance(target, dict):
                target[key] = value.lower() if key in ("level", "transport") else value
    config: Config = _build(Config, document, "")
    _check_pools(config.pools)
    if config.output.ceiling_tokens < config.output.default_tokens:
        raise ConfigError(
            f"output.ceiling_tokens: {config.output.ceiling_tokens}; accepted: at "
            f"least output.default_tokens ({config.output.default_tokens})"
        )
    for hint in config.category.hints:
        if not _NAME["valid"](hint):
            raise ConfigError(
                f"category.hints: {hint!r}; accepted: {_NAME['accepted']}"
            )
    return config


def _check_pools(pools: tuple[PoolConfig, ...]) -> None:
    if not pools:
        raise ConfigError("pools: []; accepted: one pool or more")
    previous = 0
    names: set[str] = set()
    for position, pool in enumerate(pools):
        key = f"pools[{position}]"
        if pool.name in names:
            raise ConfigError(f"{key}.name: {pool.name!r}; accepted: a name of its own")
        names.add(pool.name)
        if pool.max_model_len <= previous:
            raise ConfigError(
                f"{key}.max_model_len: {pool.max_model_len}; accepted: more than the "
                f"pool before it ({previous})"
            )
        if (pool.threshold_tokens or 0) > pool.max_model_len:
            raise ConfigError(
                f"{key}.threshold_tokens: {pool.threshold_tokens}; accepted: at most "
                f"max_model_len ({pool.max_model_len})"
            )
        previous = pool.max_model_len


def _build(schema: Any, document: dict[Any, Any], path: str) -> Any:
    """Make a dataclass of a mapping."""
    fields = {f.name: f for f in dataclasses.fields(schema)}
    hints = typing.get_type_hints(schema)
    values = {}
    for key, value in document.items():
        name = f"{path}{key}"
        if key not in fields:
            raise ConfigError(_unknown(name, str(key), list(fields)))
        values[key] = _convert(hints[key], value, name)
        check = fields[key].metadata
        if check and values[key] is not None and not check["valid"](values[key]):
            raise ConfigError(f"{name}: {value!r}; accepted: {check['accepted']}")
    for name, described in fields.items():
        if name not in values and described.default is dataclasses.MISSING:
            raise ConfigError(f"{path}{name}: missing; it has no default")
    return schema(**values)


def _unknown(name: str, key: str, known: list[str]) -> str:
    near = difflib.get_close_matches(key, known, 1)
    advice = f"did you mean {near[0]!r}?" if near else f"accepted: {', '.join(known)}"
    return f"{name}: unknown key; {advice}"


def _convert(wanted: Any, value: Any, name: str) -> Any:
    origin = typing.get_origin(wanted)
    if dataclasses.is_dataclass(wanted):
        if not isinstance(value, dict):
            raise ConfigError(f"{name}: {value!r}; accepted: a mapping of settings")
        return _build(wanted, value, f"{name}.")
    if origin is tuple:
        if not isinstance(value, list):
            raise ConfigError(f"{name}: {value!r}; accepted: a list")
        inner = typing.get_args(wanted)[0]
        return tuple(_convert(inner, v, f"{name}[{i}]") for i, v in enumerate(value))
    if origin in (types.UnionType, typing.Union):
        return _convert_union(wanted, value, name)
    if isinstance(wanted, type) and issubclass(wanted, StrEnum):
        if value not in list(wanted):
            accepted = ", ".join(wanted)
            raise ConfigError(f"{name}: {value!r}; accepted: {accepted}")
        return wanted(value)
    return _convert_scalar(wanted, value, name)


def _convert_union(wanted: Any, value: Any, name: str) -> Any:
    options = typing.get_args(wanted)
    if value is None and types.NoneType in options:
        return None
    for option in options:
        if typing.get_origin(option) is Literal:
            if value in typing.get_args(option):
                return value
        elif option is not types.NoneType and not isinstance(value, str):
            return _convert(option, value, name)
    names = [
        a
        for option in options
        for a in (typing.get_args(option) or [_SCALARS.get(option, "")])
        if a
    ]
    raise ConfigError(f"{name}: {value!r}; accepted: {', '.join(names)}")


_SCALARS = {
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    str: "text",
}


def _convert_scalar(wanted: Any, value: Any, name: str) -> Any:
    if wanted is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if type(value) is not wanted:
        raise ConfigError(f"{name}: {value!r}; accepted: {_SCALARS[wanted]}")
    return value


def as_document(config: object) -> Any:
    """The configuration as plain values, for printing."""
    if dataclasses.is_dataclass(config):
        return {
            f.name: as_document(getattr(config, f.name))
            for f in dataclasses.fields(config)
        }
    if isinstance(config, tuple):
        return [as_document(value) for value in config]
    return str(config) if isinstance(config, StrEnum) else config
