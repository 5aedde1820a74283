"""The subset of Envoy's API matches upstream, and its code matches protoc's output."""

import json
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from extproc.wire import access_log_pb2, ext_proc_pb2

PROJECT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def upstream() -> Any:
    return json.loads(
        subprocess.run(
            [sys.executable, Path(__file__).parent / "upstream.py"],
            input="{}",
            stdout=subprocess.PIPE,
            check=True,
            text=True,
        ).stdout
    )


def named(descriptors: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Return all messages by name, including nested ones."""
    for descriptor in descriptors:
        name = prefix + descriptor.name
        yield name, descriptor
        yield from named(descriptor.nested_types, f"{name}.")


MESSAGES = {
    name: descriptor
    for module in (ext_proc_pb2, access_log_pb2)
    for name, descriptor in named(module.DESCRIPTOR.message_types_by_name.values())
}


@pytest.mark.parametrize("name", MESSAGES)
def test_every_field_is_upstreams(name: str, upstream: Any) -> None:
    theirs = upstream["fields"][name]
    for field in MESSAGES[name].fields:
        kind = field.message_type or field.enum_type
        ours = [field.number, field.type, field.is_repeated, kind.name if kind else ""]

        assert ours == theirs[field.name], f"{name}.{field.name}"


def test_every_enum_value_is_upstreams(upstream: Any) -> None:
    checked = 0
    for message in MESSAGES.values():
        for enum in message.enum_types:
            for value in enum.values:
                assert upstream["enums"][enum.name][value.name] == value.number
                checked += 1

    assert checked > 10


def test_the_generated_code_is_current() -> None:
    if find_spec("grpc_tools") is None:
        pytest.skip("grpcio-tools is not installed")
    command = [sys.executable, "protos/generate.py", "--check"]

    checked = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True)

    assert checked.returncode == 0, checked.stderr
