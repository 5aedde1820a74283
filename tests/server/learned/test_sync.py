"""The observations of all processes are combined; each counts exactly once."""

import asyncio

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from extproc.server.learned.document import decode
from extproc.server.learned.store import DirectoryStore
from extproc.server.learned.sync import Synced

from .sharing import KEEP, MemoryStore, Mergeable, Process, in_turn


def test_what_was_learned_survives_a_restart(tmp_path):
    store = DirectoryStore(tmp_path, "document")
    first = Process(store)
    first.learner.teach(8.0)
    first.sync()

    second = Process(store)
    asyncio.run(second.keeper.start())
    second.learner.teach(16.0)
    second.sync()
    second.sync()
    assert second.sum == in_turn(8.0, 16.0)
    assert second.learner.counts() == {"key": 2}


def test_processes_learn_from_each_other():
    store = MemoryStore()
    one, other = Process(store), Process(store)
    one.learner.teach(8.0)
    other.learner.teach(16.0)
    for process in (one, other, one):
        process.sync()
    assert one.sum == other.sum == in_turn(8.0, 16.0)


def test_what_is_learned_during_an_exchange_is_kept():
    store = MemoryStore()
    process = Process(store)
    process.learner.teach(8.0)
    store.meanwhile = lambda: process.learner.teach(32.0)
    process.sync()
    assert process.sum == in_turn(8.0, 32.0)


def test_other_components_pass_through():
    store = MemoryStore()
    process = Process(store)
    process.learner.teach(8.0)
    process.sync()
    other = Process(store)
    other.learner = Mergeable("another.2")
    other.learner.teach(4.0)
    other.sync()
    process.sync()
    assert process.learner.counts() == {"key": 1}
    assert float(process.keeper.known("another.2")["key"].sums[0]) == 4.0


def test_what_another_version_learned_is_left_and_reported_once(caplog):
    """Another version of an estimator can have other terms, and then its sums have
    another meaning.
    """
    store = MemoryStore()
    earlier = Process(store)
    earlier.learner = Mergeable("sums.0")
    earlier.learner.teach(4.0)
    earlier.sync()
    process = Process(store)
    process.learner.teach(8.0)
    for _ in range(3):
        process.sync()
    assert process.learner.counts() == {"key": 1}
    assert store.document is not None
    assert float(decode(store.document).components["sums.0"]["key"].sums[0]) == 4.0
    (record,) = [r for r in caplog.records if r.message == "state_of_another_version"]
    assert record.fields == {"components": "sums.0"}


GROUPS = 50


def learned_apart(store):
    """Return two processes that learned many groups; only the first wrote to the store."""
    one, other = Process(store), Process(store)
    for key in range(GROUPS):
        one.learner.teach(8.0, f"key {key}")
        other.learner.teach(16.0, f"key {key}")
    one.sync()
    return one, other


def test_requests_pass_between_two_groups():
    """One turn of the event loop moves one group, even if there are many groups."""
    _, other = learned_apart(MemoryStore())

    async def watched():
        loop = asyncio.get_running_loop()
        most, seen = 0, other.learner.moved

        def turn():
            nonlocal most, seen
            most, seen = max(most, other.learner.moved - seen), other.learner.moved
            loop.call_soon(turn)

        turn()
        await other.keeper.sync()
        return max(
            most, other.learner.moved - seen
        )  # including the groups that the last turn moved

    assert (
        asyncio.run(watched()) <= 2
    )  # copied once more, as the base of the next exchange
    assert other.learner.moved >= 2 * GROUPS


def test_an_exchange_that_is_cut_short_counts_nothing_twice():
    one, other = learned_apart(MemoryStore())

    async def cut_short():
        exchange = asyncio.create_task(other.keeper.sync())
        while other.learner.counts()["key 0"] == 1:
            await asyncio.sleep(0)
        exchange.cancel()
        await asyncio.gather(exchange, return_exceptions=True)
        await other.keeper.sync()

    asyncio.run(cut_short())
    one.sync()
    expected = {f"key {key}": 2 for key in range(GROUPS)}
    assert one.learner.counts() == other.learner.counts() == expected


steps = st.lists(
    st.tuples(
        st.integers(0, 2),
        st.sampled_from(["teach", "sync", "restart"]),
        st.sampled_from([None, None, "away", "refuses to write", "answer lost"]),
    ),
    max_size=60,
)


@settings(deadline=None, max_examples=60)
@given(steps)
def test_nothing_is_lost_and_nothing_counts_twice(steps):
    """Whatever fails, every process eventually counts every observation exactly once.

    The exceptions are observations of a process that died before it could write.
    """
    store = MemoryStore()
    processes = [Process(store) for _ in range(3)]
    unwritten = [0, 0, 0]
    taught = 0
    for who, action, failing in steps:
        process = processes[who]
        if action == "teach":
            process.learner.teach(1.0)
            taught += 1
            unwritten[who] += 1
        elif action == "sync":
            store.failing = failing
            process.sync()
            store.failing = None
            if failing in (None, "answer lost"):
                unwritten[who] = 0
        else:
            taught -= unwritten[who]
            unwritten[who] = 0
            processes[who] = Process(store)
    for process in processes * 2:
        process.sync()
    expected = {"key": taught} if taught else {}
    assert [process.learner.counts() for process in processes] == [expected] * 3
    sums = {round(process.sum, 9) for process in processes if taught}
    assert len(sums) <= 1
    # In any order, the newest observation has the most weight, so the sum is 1 + KEEP +
    # KEEP**2 ...
    if taught:
        assert sums.pop() == pytest.approx((1 - KEEP**taught) / (1 - KEEP))


def test_the_writers_that_are_remembered_are_bounded():
    store = MemoryStore()
    for _ in range(300):
        process = Process(store)
        process.learner.teach(1.0)
        process.sync()
    assert store.document is not None
    assert len(decode(store.document).writers) == 256


def test_nothing_is_written_where_nothing_is_new():
    store = MemoryStore()
    one, other = Process(store), Process(store)
    one.learner.teach(8.0)
    for process in (one, other, one, other):
        process.sync()
    assert store.written == 1
    assert one.results == other.results == [Synced.OK] * 2


def test_many_answers_that_are_lost_in_a_row_count_nothing_twice():
    store = MemoryStore()
    one, other = Process(store), Process(store)
    store.failing = "answer lost"
    for _ in range(20):
        one.learner.teach(8.0)
        one.sync()
    store.failing = None
    other.learner.teach(16.0)
    for process in (other, one, other):
        process.sync()
    assert one.learner.counts() == other.learner.counts() == {"key": 21}


def test_what_a_configuration_brings_during_an_exchange_counts_once():
    """The new learner starts with what is known from the store, and continues to learn."""
    store = MemoryStore()
    process, other = Process(store), Process(store)
    other.learner = Mergeable("brought.1")
    other.learner.teach(8.0)
    for each in (other, process):
        each.sync()
    other.learner.teach(16.0)
    other.sync()

    def replace_learners():
        brought = Mergeable("brought.1")
        brought.restore(process.keeper.known("brought.1"))
        brought.teach(32.0)
        process.brought.append(brought)

    store.meanwhile = replace_learners
    process.sync()
    (brought,) = process.brought
    assert brought.counts() == {"key": 3}
    assert float(brought.groups["key"].sums[0]) == in_turn(8.0, 16.0, 32.0)
