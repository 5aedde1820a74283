"""Builds frozen dataclasses, which are the schema, from a mapping parsed from YAML.

The mapping's keys are the names of the dataclass's fields; a missing key has the
field's default. An unknown key is an error that suggests a similar one; every error
names the key, the value and the expected values. A field's metadata may contain a check
(see ``check``), ``secret`` if its value must never appear in an error or in
``as_document``, and ``restart`` (see ``RESTART``).
"""

from __future__ import annotations

import dataclasses
import difflib
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Literal, TypeVar

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

HIDDEN = "(hidden)"
"""Placeholder for a secret value."""


RESTART = {"restart": True}
"""Field metadata of a value or a section that a reload does not change."""


class ConfigError(Exception):
    """An invalid setting: one line with its key, its value and the expected values."""


def check(
    accepted: str, valid: Callable[[Any], object], *, secret: bool = False
) -> dict[str, Any]:
    """Return field metadata with a description of the valid values and a predicate."""
    return {"accepted": accepted, "valid": valid, "secret": secret}


_Section = TypeVar("_Section", bound="DataclassInstance")


def keep_until_restart(
    running: _Section, wanted: _Section, path: str = ""
) -> tuple[_Section, list[str]]:
    """Apply a new configuration, except for settings that need a restart.

    Args:
        running: the configuration in force.
        wanted: the new configuration.
        path: prefix for the names of the configuration's fields.

    Returns:
        ``wanted``, but with the values of ``running`` for fields marked ``RESTART``,
        and the dotted names of such fields whose values differ.
    """
    kept: dict[str, Any] = {}
    differing: list[str] = []
    for described in dataclasses.fields(wanted):
        name = f"{path}{described.name}"
        before = getattr(running, described.name)
        after = getattr(wanted, described.name)
        if before == after:
            continue
        if described.metadata.get("restart"):
            kept[described.name] = before
            differing += _differing(before, after, name)
        elif _is_section(before) and _is_section(after):
            section, names = keep_until_restart(before, after, f"{name}.")
            kept[described.name] = section
            differing += names
    return dataclasses.replace(wanted, **kept), differing


def _is_section(value: object) -> bool:
    return dataclasses.is_dataclass(value)


def _differing(before: Any, after: Any, name: str) -> list[str]:
    if not (_is_section(before) and _is_section(after)):
        return [name]
    return [
        f"{name}.{inner.name}"
        for inner in dataclasses.fields(after)
        if getattr(before, inner.name) != getattr(after, inner.name)
    ]


def build(schema: Any, document: dict[Any, Any], path: str = "") -> Any:
    """Build a dataclass from a mapping.

    Args:
        schema: the dataclass type.
        document: the mapping.
        path: prefix for the mapping's keys in error messages.

    Raises:
        ConfigError: an unknown or missing key, or an invalid value.
    """
    fields = {f.name: f for f in dataclasses.fields(schema)}
    hints = typing.get_type_hints(schema)
    values = {}
    for key, value in document.items():
        name = f"{path}{key}"
        if key not in fields:
            raise ConfigError(_unknown(name, str(key), list(fields)))
        rule = fields[key].metadata
        try:
            values[key] = _convert(hints[key], value, name)
        except ConfigError:
            if rule.get("secret"):
                raise ConfigError(f"{name}: {HIDDEN}; expected text") from None
            raise
        valid = rule.get("valid")
        if valid and values[key] is not None and not valid(values[key]):
            shown = HIDDEN if rule["secret"] else repr(value)
            raise ConfigError(f"{name}: {shown}; expected {rule['accepted']}")
    for name, described in fields.items():
        if name not in values and (
            described.default is dataclasses.MISSING
            and described.default_factory is dataclasses.MISSING
        ):
            raise ConfigError(f"{path}{name}: missing; it has no default")
    return schema(**values)


def _unknown(name: str, key: str, known: list[str]) -> str:
    near = difflib.get_close_matches(key, known, 1)
    advice = f"did you mean {near[0]!r}?" if near else f"expected {', '.join(known)}"
    return f"{name}: unknown key; {advice}"


def _convert(wanted: Any, value: Any, name: str) -> Any:
    origin = typing.get_origin(wanted)
    if dataclasses.is_dataclass(wanted):
        if value is None:
            value = {}  # the section is empty or entirely commented out
        if not isinstance(value, dict):
            raise ConfigError(f"{name}: {value!r}; expected a mapping of settings")
        return build(wanted, value, f"{name}.")
    if origin is tuple:
        return _convert_list(wanted, value, name)
    if origin is Mapping:
        return _convert_mapping(wanted, value, name)
    if origin in (types.UnionType, typing.Union):
        return _convert_union(wanted, value, name)
    if isinstance(wanted, type) and issubclass(wanted, StrEnum):
        if value not in list(wanted):
            accepted = ", ".join(wanted)
            raise ConfigError(f"{name}: {value!r}; expected {accepted}")
        return wanted(value)
    return _convert_scalar(wanted, value, name)


def _convert_list(wanted: Any, value: Any, name: str) -> tuple[Any, ...]:
    if not isinstance(value, list):
        raise ConfigError(f"{name}: {value!r}; expected a list")
    inner = typing.get_args(wanted)[0]
    return tuple(_convert(inner, v, f"{name}[{i}]") for i, v in enumerate(value))


def _convert_mapping(wanted: Any, value: Any, name: str) -> dict[str, Any]:
    if value is None:
        return {}
    if not isinstance(value, dict) or not all(isinstance(key, str) for key in value):
        raise ConfigError(f"{name}: {value!r}; expected a mapping of names")
    inner = typing.get_args(wanted)[1]
    return {key: _convert(inner, v, f"{name}.{key}") for key, v in value.items()}


def _convert_union(wanted: Any, value: Any, name: str) -> Any:
    options = typing.get_args(wanted)
    if value is None and types.NoneType in options:
        return None
    for option in options:
        if typing.get_origin(option) is Literal:
            if value in typing.get_args(option):
                return value
        elif option is str or (
            option is not types.NoneType and not isinstance(value, str)
        ):
            return _convert(option, value, name)
    accepted = ", ".join(name for option in options for name in _names(option))
    raise ConfigError(f"{name}: {value!r}; expected {accepted}")


def _names(option: Any) -> Sequence[str]:
    """Describe the values that a type accepts."""
    if option is types.NoneType:
        return ()
    if dataclasses.is_dataclass(option):
        return ("a mapping of settings",)
    return typing.get_args(option) or (_SCALARS[option],)


_SCALARS = {
    int: "a whole number, such as 8192",
    float: "a number",
    bool: "true or false",
    str: "text",
}


def _convert_scalar(wanted: Any, value: Any, name: str) -> Any:
    if wanted is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if type(value) is not wanted:
        raise ConfigError(f"{name}: {value!r}; expected {_SCALARS[wanted]}")
    return value


def as_document(config: object) -> Any:
    """Return the configuration as plain values, for printing."""
    if dataclasses.is_dataclass(config):
        return {
            f.name: HIDDEN
            if f.metadata.get("secret") and getattr(config, f.name) is not None
            else as_document(getattr(config, f.name))
            for f in dataclasses.fields(config)
        }
    if isinstance(config, dict):
        return {key: as_document(value) for key, value in config.items()}
    if isinstance(config, tuple):
        return [as_document(value) for value in config]
    return str(config) if isinstance(config, StrEnum) else config
