"""A store that is unreachable, hangs, has lost its data, or has another program's data."""

import asyncio
import logging
import threading

from extproc.server.learned.document import decode
from extproc.server.learned.store import DirectoryStore
from extproc.server.learned.sync import StateKeeper, Synced

from .sharing import MemoryStore, Mergeable, Process, in_turn


def test_a_store_that_is_away_is_said_once_and_caught_up_with(caplog):
    store = MemoryStore()
    process = Process(store)
    store.failing = "away"
    with caplog.at_level(logging.INFO):
        for value in (8.0, 16.0, 32.0):
            process.learner.teach(value)
            process.sync()
        store.failing = None
        process.sync()
    assert process.results == [Synced.UNAVAILABLE] * 3 + [Synced.OK]
    assert [record.message for record in caplog.records] == [
        "state_store_away",
        "state_store_back",
    ]
    other = Process(store)
    other.sync()
    assert other.sum == in_turn(8.0, 16.0, 32.0)


def test_a_store_that_lost_everything_gets_it_back():
    store = MemoryStore()
    process = Process(store)
    process.learner.teach(8.0)
    process.sync()
    store.document = None
    process.learner.teach(16.0)
    process.sync()
    other = Process(store)
    other.sync()
    assert other.sum == in_turn(8.0, 16.0)


def test_an_unreadable_document_is_set_aside_and_said(tmp_path, caplog):
    (tmp_path / "document").write_bytes(b"not ours")
    process = Process(DirectoryStore(tmp_path, "document"))
    process.learner.teach(8.0)
    process.sync()
    assert process.results == [Synced.SET_ASIDE]
    assert "document.foreign" in str(caplog.records[0].fields)
    assert (tmp_path / "document.foreign").read_bytes() == b"not ours"
    assert process.sum == 8.0


class Held(MemoryStore):
    """A store that responds only after the test has released it."""

    def __init__(self):
        super().__init__()
        self.answers = threading.Event()
        self.asked = 0

    def update(self, change):
        self.asked += 1
        self.answers.wait()
        super().update(change)


def test_a_hung_store_holds_up_neither_start_nor_stop():
    store = Held()
    process = Process(store)

    async def life():
        await process.keeper.start()
        process.learner.teach(8.0)
        await process.keeper.stop()

    try:
        asyncio.run(life())
    finally:
        store.answers.set()
    assert process.results == [Synced.UNAVAILABLE] * 2


def test_an_error_nobody_thought_of_is_logged_and_tried_again(caplog):
    class Odd(MemoryStore):
        calls = 0

        def update(self, change):
            self.calls += 1
            if self.calls == 1:
                raise RuntimeError("odd")
            super().update(change)

    process = Process(Odd())
    process.learner.teach(8.0)

    async def until_synced():
        synced = asyncio.Event()

        def note(result):
            process.results.append(result)
            if result is Synced.OK:
                synced.set()

        keeper = StateKeeper(lambda: [process.learner], store, 0.001, note)
        running = asyncio.create_task(keeper.run())
        await synced.wait()
        running.cancel()

    store = Odd()
    asyncio.run(until_synced())
    assert process.results[0] is Synced.UNAVAILABLE
    assert "state_sync_failed" in caplog.text


def test_a_store_that_lost_what_others_learned_gets_that_too():
    store = MemoryStore()
    process, other = Process(store), Process(store)
    other.learner = Mergeable("another.2")
    other.learner.teach(4.0)
    other.sync()
    process.sync()
    store.document = None
    process.sync()
    assert store.document is not None
    assert set(decode(store.document).components) == {"sums.1", "another.2"}


def test_a_store_that_hangs_is_asked_once(caplog):
    store = Held()
    process = Process(store)

    async def life():
        await process.keeper.start()
        process.learner.teach(8.0)
        await process.keeper.sync()
        await process.keeper.sync()
        asked = store.asked
        store.answers.set()
        await process.keeper.stop()  # waits until the first exchange has finished
        return asked

    try:
        assert asyncio.run(asyncio.wait_for(life(), 10)) == 1
    finally:
        store.answers.set()
    assert process.results == [Synced.UNAVAILABLE] * 3 + [Synced.OK]
    other = Process(store)
    other.sync()
    assert other.sum == 8.0
    assert "asyncio" not in {record.name for record in caplog.records}


def test_a_store_that_hangs_does_not_keep_the_process_alive():
    store = Held()
    process = Process(store)
    threads = set(threading.enumerate())
    asyncio.run(process.keeper.start())
    (hanging,) = set(threading.enumerate()) - threads
    try:
        assert hanging.daemon
    finally:
        store.answers.set()
        hanging.join()
