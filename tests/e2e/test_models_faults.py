"""If any part of a fleet is broken, no request fails or reaches a wrong model.

Clients continuously use every model name, with short and long prompts, with and without
a content-length, and with one body that the router does not read. The output lists the
number of requests sent, and how many of them failed, reached a wrong model's pool, or
had no decision by the router. Without a decision, the filter after the router sets the
model.
"""

import itertools
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from extproc.demo.stack.access_log import wait_for_records
from extproc.demo.stack.stack import Router, router

from ..patience import PATIENCE_S, wait_until
from .fleet import FLEET, LONG, NAMES, POOLS, chat, pool_of
from .outside import Client, Response
from .scripted import ScriptedBackend
from .unsized import PATH, send_chunked

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.faults,
    pytest.mark.xdist_group("faults"),
]

CLIENTS = 4
STEADY = 40
"""Number of responses to await before, during and after a fault."""


@pytest.fixture(scope="module", params=["grpcio", "native"])
def broken(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Router]:
    """Start the router that the tests will break."""
    config = FLEET | {"server": {"transport": request.param}}
    started = router(config, tmp_path_factory.mktemp("router"))
    with started.child:
        started.wait_ready()
        yield started
        started.child.kill()


@pytest.fixture
def fleet(broken: Router, start_fleet: Callable[..., Client]) -> Client:
    """Return the Envoy of the broken router, with the shipped timeouts for the router."""
    broken.child.resume()
    if not broken.child.running:
        broken.child.start()
    broken.wait_ready()
    client = start_fleet(broken.port, _wait_for_pools)
    wait_until(lambda: client.envoy.healthy_endpoints("extproc") == 1)
    return client


def _wait_for_pools(config: Any) -> None:
    """Give the scripted pools more time to accept a connection, because only the router
    is meant to fail.
    """
    for cluster in config["static_resources"]["clusters"]:
        if cluster["name"].startswith("vllm_"):
            cluster["connect_timeout"] = "20s"


class Load:
    """Clients that use every name in turn, and record each wrong response."""

    def __init__(self, client: Client) -> None:
        self.failed: list[str] = []
        self.wrong: list[str] = []
        self.request_ids: list[str] = []
        self._client = client
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._run) for _ in range(CLIENTS)]

    def __enter__(self) -> "Load":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    @property
    def sent(self) -> int:
        return len(self.request_ids)

    def wait_for(self, count: int = STEADY) -> None:
        """Wait until ``count`` more requests have a response."""
        goal = self.sent + count
        wait_until(lambda: self.sent >= goal)

    def undecided(self) -> int:
        """Count the requests without a routing decision in Envoy's access log."""
        log = self._client.envoy.access_log
        records = wait_for_records(log, self.request_ids, PATIENCE_S)
        return sum(record.pool is None for record in records.values())

    def until_decided(self) -> None:
        """Wait until the router makes decisions again."""

        def decided() -> bool:
            response = self._client.post(PATH, chat("qwen3-32b"))
            return pool_of(response) == "qwen-short"

        wait_until(decided)

    def _run(self) -> None:
        for name, send in itertools.cycle(itertools.product(NAMES, _SENDERS)):
            if self._stop.is_set():
                return
            try:
                response = send(self._client, name)
            except OSError as error:
                self.failed.append(f"{name}: {error!r}")
                continue
            pool = pool_of(response)
            if response.status != 200:
                self.failed.append(f"{name}: {response.status} {response.body!r}")
            elif pool not in POOLS[NAMES[name]]:
                self.wrong.append(f"{name}: {pool}")
            self.request_ids.append(response.request_id)


def _short(client: Client, name: str) -> Response:
    return client.post(PATH, chat(name))


def _long(client: Client, name: str) -> Response:
    return client.post(PATH, chat(name, LONG))


def _chunked(client: Client, name: str) -> Response:
    body = chat(name)
    return send_chunked(client, [body[:20], body[20:]])


def _above_the_cap(client: Client, name: str) -> Response:
    return client.post(PATH, chat(name, "A" * (2 << 20)))


_SENDERS = [_short, _long, _short, _chunked, _short, _above_the_cap]


def killed(broken: Router, load: Load) -> None:
    broken.child.kill()
    load.wait_for()
    broken.child.start()
    broken.wait_ready()


def not_started(broken: Router, load: Load) -> None:
    broken.child.stop(grace_s=PATIENCE_S)
    load.wait_for()
    broken.child.start()
    broken.wait_ready()


def hung(broken: Router, load: Load) -> None:
    broken.child.pause()
    load.wait_for()
    broken.child.resume()


def slow(broken: Router, load: Load) -> None:
    """The router runs only for short periods, as on an overloaded machine."""
    for _ in range(5):
        broken.child.pause()
        load.wait_for(CLIENTS)
        broken.child.resume()
        load.wait_for(CLIENTS)


FAULTS = [killed, not_started, hung, slow]


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
def test_the_router(
    fault: Callable[[Router, Load], None],
    broken: Router,
    fleet: Client,
    capsys: pytest.CaptureFixture[str],
    request: pytest.FixtureRequest,
) -> None:
    with Load(fleet) as load:
        load.wait_for()
        fault(broken, load)
        load.until_decided()
        load.wait_for()

    report(request, capsys, load)


@pytest.mark.parametrize("pool", ["llama-short", "qwen-short"])
def test_a_small_pool_s_server_is_gone(
    pool: str,
    broken: Router,
    start_fleet: Callable[..., Client],
    unused_port: int,
    capsys: pytest.CaptureFixture[str],
    request: pytest.FixtureRequest,
) -> None:
    """The largest pool of the same model serves the requests of the small pool."""

    def remove(bootstrap: dict[str, Any]) -> None:
        for cluster in bootstrap["static_resources"]["clusters"]:
            if cluster["name"] == f"vllm_{pool}":
                endpoint = cluster["load_assignment"]["endpoints"][0]["lb_endpoints"][0]
                address = endpoint["endpoint"]["address"]["socket_address"]
                address["port_value"] = unused_port

    client = start_fleet(broken.port, remove)
    wait_until(lambda: client.envoy.healthy_endpoints("extproc") == 1)
    with Load(client) as load:
        load.wait_for()

    report(request, capsys, load)


@pytest.mark.parametrize("pool", [pool for pools in POOLS.values() for pool in pools])
def test_a_refusal_for_length_stays_with_its_model(
    pool: str,
    fleet: Client,
    scripted: ScriptedBackend,
    respond: Callable[..., bytes],
) -> None:
    """If every server rejects the request, the client gets the largest pool's error."""
    message = b'{"error": {"message": "Input length (9001) exceeds model\'s maximum context length (8192)."}}'
    scripted.reply = [respond(400, message)]
    (model,) = (model for model, pools in POOLS.items() if pool in pools)
    content = LONG if pool == POOLS[model][-1] else "Hello"

    response = fleet.post(PATH, chat(model, content))

    small = len(POOLS[model]) > 1 and pool == POOLS[model][0]
    assert (response.status, response.attempts) == (400, 2 if small else 1)
    assert pool_of(response) == POOLS[model][-1]


def report(
    request: pytest.FixtureRequest, capsys: pytest.CaptureFixture[str], load: Load
) -> None:
    """Print a fault's effect on the clients, and fail if any request failed."""
    undecided = load.undecided()
    with capsys.disabled():
        print(
            f"\n{request.node.name:<50} sent {load.sent:>5}  failed {len(load.failed):>2}"
            f"  at a wrong model {len(load.wrong):>2}  without a decision {undecided:>4}",
            end="",
        )
    assert load.failed == []
    assert load.wrong == []
    assert load.sent >= STEADY
