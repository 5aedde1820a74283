"""A real Envoy, a real router and two stand-ins, started once for all of tests/e2e."""

import contextlib
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from extproc.demo.stack.envoy_config import find_config
from extproc.demo.stack.process import Child, free_ports
from extproc.demo.stack.stack import (
    Backend,
    Router,
    Stack,
    envoy,
    router,
    running,
    stand_in,
)
from extproc.demo.stack.vllm_backend import VllmError, find_vllm, make_model, vllm

from ..patience import be_patient, wait_until
from .fleet import ALL_POOLS, ENVOY, FLEET
from .outside import Admin, Client, Response
from .scripted import ScriptedBackend, http_response

SHORT_WINDOW, LONG_WINDOW = 8192, 65536
LEARN_ALL = {"feedback": {"sample": "all"}}
Change = Callable[[dict[str, Any]], None]


@pytest.fixture(scope="session")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("e2e")


def _patiently(change: Change | None) -> Change:
    def both(bootstrap: dict[str, Any]) -> None:
        be_patient(bootstrap)
        if change is not None:
            change(bootstrap)

    return both


def start_until_killed(child: Child, started: contextlib.ExitStack) -> None:
    """Start a child that is killed at the end, because a clean exit takes a second."""
    child.start()
    started.callback(child.kill)


@pytest.fixture(scope="session")
def stack(directory: Path) -> Iterator[Stack]:
    """Run the whole stack, with every response observed."""
    backends = [
        stand_in("short", SHORT_WINDOW, 64, directory, speed=50),
        stand_in("long", LONG_WINDOW, 16, directory, speed=50),
    ]
    with running(
        directory, backends, LEARN_ALL, find_config(), change_envoy=be_patient
    ) as started:
        yield started
        started.envoy.child.kill()
        started.router.child.kill()


@pytest.fixture(scope="session")
def client(stack: Stack) -> Client:
    return Client(stack.envoy)


@pytest.fixture(scope="session")
def admin(stack: Stack) -> Admin:
    return Admin(stack.router)


@pytest.fixture(scope="session")
def start_session(
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Callable[..., tuple[Client, Admin]]]:
    """Return a function that starts another router and Envoy for the whole session."""
    with contextlib.ExitStack() as started:

        def start(
            config: dict[str, Any], backends: list[Backend]
        ) -> tuple[Client, Admin]:
            directory = tmp_path_factory.mktemp("session")
            new_router = router(config, directory)
            start_until_killed(new_router.child, started)
            new_router.wait_ready()
            new = envoy(
                find_config(),
                backends,
                new_router.port,
                directory,
                change=be_patient,
            )
            start_until_killed(new.child, started)
            new.wait_ready()
            return Client(new), Admin(new_router)

        yield start


@pytest.fixture(scope="session")
def start_session_envoy(
    stack: Stack, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[..., Client]]:
    """Return a function that starts another Envoy, which uses the router of the stack."""
    with contextlib.ExitStack() as started:

        def start(
            change: Change | None = None,
            backends: list[Backend] | None = None,
        ) -> Client:
            new = envoy(
                find_config(),
                backends or stack.backends,
                stack.router.port,
                tmp_path_factory.mktemp("envoy"),
                change=_patiently(change),
            )
            start_until_killed(new.child, started)
            new.wait_ready()
            return Client(new)

        yield start


@pytest.fixture(scope="session")
def optimistic(
    stack: Stack, start_session: Callable[..., tuple[Client, Admin]]
) -> tuple[Client, Admin]:
    """Return an Envoy whose router assumes a short window of 30,000 tokens."""
    pools = [
        {"name": "short", "max_model_len": 30_000},
        {"name": "long", "max_model_len": LONG_WINDOW},
    ]
    return start_session(LEARN_ALL | {"pools": pools}, stack.backends)


@pytest.fixture(scope="session")
def optimistic_client(optimistic: tuple[Client, Admin]) -> Client:
    return optimistic[0]


def _check_case(
    client: Client, case: dict[str, Any], model: str | None = None
) -> Response:
    """Send a case of ``cases.yaml``, and compare the response with the expectations."""
    body = case["body"]
    if body and model:
        body = body | {"model": model}
    response = client.post(case["path"], body, case.get("headers"), timeout=120)
    record = client.record(response)
    seen = {
        "status": response.status,
        "attempts": response.attempts,
        "backend": (response.served_by or "").removeprefix("vllm_"),
        "pool": record.pool,
        "reason": record.reason,
        "category": record.category,
    }
    expected = case["expect"]
    assert {key: seen[key] for key in expected} == expected, response.body[:500]
    return response


@pytest.fixture(scope="session")
def check_case() -> Callable[..., Response]:
    return _check_case


@pytest.fixture(scope="session")
def patiently() -> Callable[[Change | None], Change]:
    """Return a function that extends a change of Envoy's configuration by longer
    timeouts.
    """
    return _patiently


@pytest.fixture(scope="session")
def client_of() -> type[Client]:
    return Client


@pytest.fixture(scope="session")
def admin_of() -> type[Admin]:
    return Admin


@pytest.fixture
def start_envoy(
    stack: Stack, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[..., Client]]:
    """Return a function that starts another Envoy, for which some parts can be missing."""
    with contextlib.ExitStack() as started:

        def start(
            router: Router = stack.router,
            backends: list[Backend] | None = None,
            change: Change | None = None,
            as_shipped: bool = False,
        ) -> Client:
            new = envoy(
                find_config(),
                backends or stack.backends,
                router.port,
                tmp_path_factory.mktemp("envoy"),
                change=change if as_shipped else _patiently(change),
            )
            start_until_killed(new.child, started)
            new.wait_serving()
            return Client(new)

        yield start


@pytest.fixture(scope="session")
def eventually() -> Callable[..., Any]:
    return wait_until


@pytest.fixture(scope="session")
def respond() -> Callable[..., bytes]:
    return http_response


@pytest.fixture
def unused_port() -> int:
    (port,) = free_ports(1)
    return port


@pytest.fixture(scope="session")
def scripted() -> Iterator[ScriptedBackend]:
    backend = ScriptedBackend()
    yield backend
    backend.close()


@pytest.fixture(scope="module")
def start_fleet(
    scripted: ScriptedBackend, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[..., Client]]:
    """Return a function that starts an Envoy for the fleet, which uses the router at a
    given port.
    """
    with contextlib.ExitStack() as started:

        def start(router_port: int, change: Change | None = be_patient) -> Client:
            new = envoy(
                ENVOY / "models.yaml",
                [scripted.as_backend(pool) for pool in ALL_POOLS],
                router_port,
                tmp_path_factory.mktemp("models"),
                change=change,
            )
            start_until_killed(new.child, started)
            new.wait_serving()
            return Client(new)

        yield start


@pytest.fixture(scope="module")
def models_router(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Router]:
    """Run the router for the fleet of several models."""
    with contextlib.ExitStack() as started:
        new = router(FLEET, tmp_path_factory.mktemp("router"))
        start_until_killed(new.child, started)
        new.wait_ready()
        yield new


@pytest.fixture(scope="session")
def vllm_stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """Run two real vLLM servers; see ``test_vllm.py``."""
    python = os.environ.get("EXTPROC_VLLM_PYTHON", sys.executable)
    try:
        find_vllm(python)
    except VllmError as error:
        pytest.skip(f"EXTPROC_VLLM_PYTHON: {error}")
    directory = tmp_path_factory.mktemp("vllm")
    model = make_model(directory, python)
    backends = [
        vllm("short", SHORT_WINDOW, 16, model, directory, python=python),
        vllm("long", LONG_WINDOW, 4, model, directory, python=python),
    ]
    with running(directory, backends, LEARN_ALL, find_config()) as started:
        yield started


@pytest.fixture(scope="session")
def vllm_client(vllm_stack: Stack) -> Client:
    return Client(vllm_stack.envoy)


@pytest.fixture(autouse=True)
def _forget_script(request: pytest.FixtureRequest) -> Iterator[None]:
    """Reset the scripted backend, so that it returns status 200 in the next test."""
    yield
    if "scripted" in request.fixturenames:
        request.getfixturevalue("scripted").reset()


@pytest.fixture(scope="session")
def scripted_client(
    stack: Stack, scripted: ScriptedBackend, start_session_envoy: Callable[..., Client]
) -> Client:
    """Return the client of an Envoy whose short pool is the scripted backend."""
    return start_session_envoy(
        backends=[scripted.as_backend("short"), stack.backend("long")]
    )


class _CaseLoader(yaml.SafeLoader):
    """A YAML loader that supports ``!repeat [text, count]``."""


def _repeat(loader: yaml.SafeLoader, node: yaml.SequenceNode) -> str:
    text, count = loader.construct_sequence(node)
    return str(text) * int(count)


_CaseLoader.add_constructor("!repeat", _repeat)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "case" in metafunc.fixturenames:
        cases = yaml.load(
            (Path(__file__).parent / "cases.yaml").read_text(), _CaseLoader
        )
        metafunc.parametrize("case", cases, ids=[case["name"] for case in cases])
