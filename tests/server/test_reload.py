import asyncio
import os

import pytest

from extproc.config import load_config
from extproc.routing.features import measure
from extproc.routing.mergeable import snapshot
from extproc.routing.policy import Pool
from extproc.routing.request import Prompt
from extproc.server.build import build
from extproc.server.reload import ConfigWatch, Reloaded, fingerprint
from extproc.server.runtime import Runtime


class Watched:
    """A watch over a file, with a list of its reloads."""

    def __init__(self, path):
        self.applied = []
        self.results = []
        self.kept = []
        self.restart_needed = 0
        self.changed = asyncio.Event()
        self.watch = ConfigWatch(path, self.apply, self.note, poll_s=0.005)

    async def apply(self, config):
        self.applied.append(config)
        return self.kept

    def note(self, result, restart_needed):
        self.results.append(result)
        self.restart_needed = restart_needed
        self.changed.set()

    async def __aenter__(self):
        self.task = asyncio.create_task(self.watch.run())
        return self

    async def __aexit__(self, *exc):
        self.task.cancel()

    async def next(self):
        async with asyncio.timeout(10):
            await self.changed.wait()
        self.changed.clear()
        return self.results[-1]


def thresholds(config):
    return [pool.threshold_tokens for pool in config.pools]


def pools_with(threshold):
    return (
        f"pools: [{{name: s, max_model_len: 100, threshold_tokens: {threshold}}}, "
        "{name: l, max_model_len: 1000}]\n"
    )


def test_settings_that_take_a_restart_are_counted(tmp_path):
    async def scenario():
        path = tmp_path / "extproc.yaml"
        path.write_text(pools_with(10))
        async with Watched(path) as watched:
            watched.kept = ["server.listen", "otel"]
            path.write_text(pools_with(20))
            await watched.next()
            assert watched.restart_needed == 2

    asyncio.run(scenario())


def test_a_file_that_is_written_over_is_put_in_force(tmp_path):
    async def scenario():
        path = tmp_path / "extproc.yaml"
        path.write_text(pools_with(10))
        async with Watched(path) as watched:
            path.write_text(pools_with(20) + "# longer\n")
            assert await watched.next() is Reloaded.OK
            assert thresholds(watched.applied[-1]) == [20, None]

    asyncio.run(scenario())


def test_a_config_map_that_kubernetes_swaps_is_put_in_force(tmp_path):
    """The mounted file links to ..data/file, and Kubernetes replaces ..data."""

    def mount(version, threshold):
        directory = tmp_path / f"..{version}"
        directory.mkdir()
        (directory / "extproc.yaml").write_text(pools_with(threshold))
        # Both versions have the same size and time, as if they were written within the
        # same second.
        os.utime(directory / "extproc.yaml", (1, 1))
        new = tmp_path / "..data_tmp"
        new.symlink_to(directory.name)
        new.replace(tmp_path / "..data")

    async def scenario():
        mount("first", 10)
        path = tmp_path / "extproc.yaml"
        path.symlink_to("..data/extproc.yaml")
        async with Watched(path) as watched:
            mount("second", 20)
            assert await watched.next() is Reloaded.OK
            assert thresholds(watched.applied[-1]) == [20, None]

    asyncio.run(scenario())


def test_asking_reloads_a_file_that_has_not_changed(tmp_path):
    async def scenario():
        path = tmp_path / "extproc.yaml"
        path.write_text(pools_with(10))
        async with Watched(path) as watched:
            watched.watch.ask()
            assert await watched.next() is Reloaded.OK

    asyncio.run(scenario())


@pytest.mark.parametrize(
    "text", ["pools: []\n", "no_such_key: 1\n", "{", "pools: [{name: é}]", "\x00"]
)
def test_a_wrong_file_is_refused_and_a_right_one_taken_again(tmp_path, text, caplog):
    async def scenario():
        path = tmp_path / "extproc.yaml"
        path.write_text(pools_with(10))
        async with Watched(path) as watched:
            path.write_text(text)
            assert await watched.next() is Reloaded.FAILED
            assert watched.applied == []
            path.write_text(pools_with(30))
            assert await watched.next() is Reloaded.OK
            assert thresholds(watched.applied[-1]) == [30, None]

    asyncio.run(scenario())
    assert "config_refused" in caplog.text


def test_a_file_that_is_gone_for_a_moment_is_no_change(tmp_path):
    path = tmp_path / "extproc.yaml"
    assert fingerprint(path) is None
    path.write_text("a")
    first = fingerprint(path)
    assert first is not None
    path.unlink()
    assert fingerprint(path) is None


def live(text):
    return Runtime(build(load_config(text, {})), lambda: True, lambda call: call())


def replace(server, text, known=lambda component: {}):
    async def scenario():
        try:
            return await server.replace(load_config(text, {}), known)
        finally:
            await server.stop()

    return asyncio.run(scenario())


def teach(server):
    text = b"some text to learn from " * 10
    features = measure(Prompt(text=text), len(text))
    router = server.in_force.now.router
    router.ratios.observe("prose", features, 60)
    router.estimator.observe("m", "prose", features, 60)


def test_new_pools_keep_what_was_learned():
    server = live(pools_with(10))
    teach(server)
    before = server.in_force.now.router.ratios.all()
    assert replace(server, pools_with(20)) == []
    assert server.in_force.now.router.policy.pools[0] == Pool("s", 100, 20)
    assert server.service.router is server.in_force.now.router
    assert server.in_force.now.router.ratios.all() == before != {}
    assert "m" in snapshot(server.in_force.now.router.estimator.estimator)


@pytest.mark.parametrize(
    ("entries", "is_known"), [(65536, True), (16, False)], ids=["same", "another size"]
)
def test_conversations_are_remembered_across_a_reload(entries, is_known):
    text = "feedback: {sample: all}\n"
    server = live(pools_with(10) + text)
    prompt = Prompt(b"some text", message_ends=(9,))
    memory = server.in_force.now.router.conversations
    memory.remember(memory.find("m", prompt).key, 5)
    replace(server, pools_with(20) + text + f"conversations: {{entries: {entries}}}\n")
    after = server.in_force.now.router.conversations
    assert bool(after.find("m", prompt).known_tokens) == is_known


def test_another_estimator_starts_from_what_is_stored_of_it():
    server = live(pools_with(10))
    teach(server)
    stored = live("estimator: {name: ema}")
    teach(stored)
    groups = snapshot(stored.in_force.now.router.estimator.estimator)
    replace(
        server,
        pools_with(10) + "estimator: {name: ema}\n",
        lambda component: groups if component == "ema.1" else {},
    )
    learned = snapshot(server.in_force.now.router.estimator.estimator)["prose"]
    assert learned.sums == pytest.approx(groups["prose"].sums)


def test_what_takes_a_restart_is_named_and_kept():
    server = live(pools_with(10))
    changed = (
        pools_with(20)
        + "server: {listen: '0.0.0.0:1', drain_timeout_s: 3}\n"
        + "state: {store: directory, path: /tmp}\n"
    )
    assert replace(server, changed) == ["server.listen", "state.store", "state.path"]
    assert server.in_force.now.config.server.listen == "0.0.0.0:9002"
    assert server.in_force.now.config.server.drain_timeout_s == 3
    assert thresholds(server.in_force.now.config) == [20, None]
