"""Reads a configuration from a YAML file and environment variables."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import yaml

from extproc import strict_yaml
from extproc.address import Address
from extproc.config.accepted import MODEL_NAME, NAME
from extproc.config.models import OTHER_MODEL, DefaultModelConfig
from extproc.config.pools import PoolConfig
from extproc.config.serving import ServerConfig, StateConfig, StateStore
from extproc.config.settings import Config
from extproc.schema import ConfigError, build

ENVIRONMENT = {
    "EXTPROC_LISTEN": ("server", "listen"),
    "EXTPROC_ADMIN": ("server", "admin"),
    "EXTPROC_TRANSPORT": ("server", "transport"),
    "EXTPROC_WORKERS": ("server", "workers"),
    "EXTPROC_LOG_LEVEL": ("log", "level"),
    "EXTPROC_STATE_URL": ("state", "url"),
}
"""Environment variables that override the file."""


def load_config(text: str, environment: Mapping[str, str]) -> Config:
    """Read a configuration.

    Args:
        text: YAML; empty for the defaults.
        environment: variables; those in ``ENVIRONMENT`` override the file.

    Raises:
        ConfigError: the text is not YAML, or contains an unknown key or an invalid
            value.
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
            f"output.ceiling_tokens: {config.output.ceiling_tokens}; expected at "
            f"least output.default_tokens ({config.output.default_tokens})"
        )
    _check_responses_pool(config)
    _check_state(config.state)
    _check_workers(config.server)
    for hint in config.category.hints:
        if not NAME["valid"](hint):
            raise ConfigError(f"category.hints: {hint!r}; expected {NAME['accepted']}")
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
        raise ConfigError(
            f"configuration: {document!r}; expected a mapping of settings"
        )
    return document


def _read_variable(key: str, value: str) -> str | int:
    if key == "workers" and value.isdecimal():
        return int(value)
    return value.lower() if key in ("level", "transport") else value


_INHERITED = ("output", "risk", "media")


def _inherit(document: dict[str, Any]) -> None:
    """Merge the fleet's values into each model's sections.

    Raises:
        ConfigError: both ``pools`` and ``models`` are set.
    """
    models = document.get("models")
    if not isinstance(models, dict) or not models:
        return
    if document.get("pools"):
        raise ConfigError("pools: set beside models; expected only one of them")
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
        if not MODEL_NAME["valid"](model) or model == OTHER_MODEL:
            raise ConfigError(
                f"{key}: {model!r}; expected {MODEL_NAME['accepted']}, not "
                f"{OTHER_MODEL!r}"
            )
        for name in (model, *each.adapters):
            if name in names:
                raise ConfigError(
                    f"{key}: {name!r}; expected a name not used by {names[name]}"
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
        path: prefix of ``pools`` in error messages.
        taken: pool names of other models; extended by this model's.
    """
    if not pools:
        raise ConfigError(f"{path}pools: []; expected at least one pool")
    previous = 0
    names: set[str] = set() if taken is None else taken
    for position, pool in enumerate(pools):
        key = f"{path}pools[{position}]"
        if pool.name in names:
            raise ConfigError(f"{key}.name: {pool.name!r}; expected a unique name")
        names.add(pool.name)
        if pool.max_model_len <= previous:
            raise ConfigError(
                f"{key}.max_model_len: {pool.max_model_len}; expected more than the "
                f"previous pool's {previous} (pools are in ascending order)"
            )
        if (pool.threshold_tokens or 0) > pool.max_model_len:
            raise ConfigError(
                f"{key}.threshold_tokens: {pool.threshold_tokens}; expected at most "
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
            f"server.listen: {server.listen!r}; expected a port from 1 to {last} "
            f"with {server.workers} workers"
        )


def _check_state(state: StateConfig) -> None:
    if state.store is StateStore.DIRECTORY and state.path is None:
        raise ConfigError(
            "state.path: missing; expected a path with state.store: directory"
        )
    if state.store is StateStore.REDIS and state.url is None:
        raise ConfigError("state.url: missing; expected a URL with state.store: redis")
