"""Synchronizes the process's learned state with a store that other processes share.

Every few seconds, a thread reads the stored sums, adds the sums that this process has
learned since the last exchange, and writes the result. The same exchange adds the sums
of other processes to this process. If the store is unreachable, only the sharing stops.
Sums learned while it is unreachable are added as soon as it is reachable again.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import secrets
import threading
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import partial
from typing import Any

from extproc.routing.mergeable import DecayedSums, Mergeable, merge
from extproc.server.learned.document import Document, decode, encode
from extproc.server.learned.store import SetAside, Store, StoreError

logger = logging.getLogger(__name__)

Components = Mapping[str, Mapping[str, DecayedSums]]

Where = tuple[str, str]
"""Identifies a group by component and key."""

_MAX_WRITERS = 256
"""Maximum number of processes whose last write is recorded in the document. If the
answer to a write is lost, its process looks for the write within seconds, while the
process is still among the latest writers."""

_MAX_ATTEMPTS = 8
"""Maximum number of unanswered writes to remember. The next answer shows which of the
writes succeeded."""


class Synced(StrEnum):
    """Result of an exchange with the store. A closed set, used as metric labels."""

    OK = "ok"
    SET_ASIDE = "set_aside"
    """The stored document was unusable: it was set aside and a new document was
    started."""
    UNAVAILABLE = "unavailable"


@dataclass(frozen=True, slots=True)
class _Attempt:
    """A write without an answer, which may or may not have succeeded."""

    ours: Components
    written: Components


class StateKeeper:
    """Synchronizes learners with a store.

    Args:
        learners: returns the current learners. It is called before each exchange, since
            a reload may add learners.
        store: store, whose blocking methods are called on a thread.
        interval_s: seconds between exchanges. A crash loses at most what was learned in
            this time.
        synced: called with the result of each exchange.
        wait_s: maximum seconds by which a slow store delays startup and shutdown.
    """

    def __init__(
        self,
        learners: Callable[[], Sequence[Mergeable]],
        store: Store,
        interval_s: float,
        synced: Callable[[Synced], None] = lambda result: None,
        wait_s: float = 3.0,
    ) -> None:
        self._learners = learners
        self._store = store
        self._interval_s = interval_s
        self._synced = synced
        self._wait_s = wait_s
        self._writer = secrets.token_hex(8)
        self._number = 0
        self._base: Components = {}
        self._attempts: dict[int, _Attempt] = {}
        self._read = (b"", Document())
        self._idle = asyncio.Event()  # set if no thread uses the store
        self._idle.set()
        self._away = False
        self._left: set[str] = set()
        """Stored components of other program versions, already logged."""

    async def start(self) -> None:
        """Load the stored state; give up if the store is too slow."""
        await self._in_time(self.sync())

    async def run(self) -> None:
        """Synchronize until cancelled."""
        while True:
            await asyncio.sleep(self._interval_s)
            try:
                await self.sync()
            except Exception:
                # After any error, the process still has its learned state and the next
                # exchange retries.
                logger.exception("state_sync_failed")
                self._synced(Synced.UNAVAILABLE)

    async def stop(self) -> None:
        """Write the latest learned state; give up if the store is too slow."""
        await self._in_time(self._sync_last())

    async def _in_time(self, exchange: Coroutine[Any, Any, None]) -> None:
        try:
            await asyncio.wait_for(exchange, self._wait_s)
        except TimeoutError:
            self._failed(StoreError(f"no answer within {self._wait_s:g} s"))

    async def _sync_last(self) -> None:
        await self._idle.wait()  # an abandoned exchange may still be running
        await self.sync()

    def known(self, component: str) -> Mapping[str, DecayedSums]:
        """Return the stored state of a component, as of the last exchange."""
        return self._base.get(component, {})

    async def sync(self) -> None:
        """Exchange sums with the store once. Calls must not overlap."""
        if not self._idle.is_set():
            self._failed(StoreError("no answer yet"))
            return
        ours = await _snapshot(self._learners())
        try:
            merged, aside = await self._on_thread(lambda: self._exchange(ours))
        except StoreError as error:
            self._failed(error)
            return
        if self._away:
            self._away = False
            logger.info("state_store_back")
        if aside is not None:
            fields = {"place": aside.place, "reason": aside.reason}
            logger.error("state_set_aside", extra={"fields": fields})
        self._report_left(ours, merged)
        await self._take_in(ours, merged)
        self._synced(Synced.OK if aside is None else Synced.SET_ASIDE)

    def _report_left(self, ours: Components, merged: Components) -> None:
        """Log each stored component of another program version, but only once.

        These components stay in the store for servers of that version.
        """
        kinds = {_kind(name) for name in ours}
        left = {name for name in merged if name not in ours and _kind(name) in kinds}
        if left - self._left:
            fields = {"components": ", ".join(sorted(left - self._left))}
            logger.warning("state_of_another_version", extra={"fields": fields})
            self._left |= left

    def _failed(self, error: StoreError) -> None:
        if not self._away:  # one line per outage instead of one per exchange
            self._away = True
            logger.error("state_store_away", extra={"fields": {"error": str(error)}})
        self._synced(Synced.UNAVAILABLE)

    def _exchange(self, ours: Components) -> tuple[Components, SetAside | None]:
        """Merge the learned state into the stored document; runs on a thread."""
        self._number += 1
        result: Components = ours

        def change(stored: bytes | None) -> bytes | None:
            nonlocal result
            if stored is None:
                # If the store has lost its content, write all sums that this process
                # knows.
                document = Document()
                result = {**self._base, **ours}
            else:
                document = self._decode(stored)
                result = self._merge_into(document, ours)
                if _same(result, document.components):
                    return None
            self._attempts[self._number] = _Attempt(ours, result)
            if len(self._attempts) > _MAX_ATTEMPTS:
                del self._attempts[min(self._attempts)]
            writers = _latest(document.writers, self._writer, self._number)
            written = Document(result, writers)
            encoded = encode(written)
            self._read = (_digest(encoded), written)
            return encoded

        aside = self._store.update(change)
        return result, aside

    def _decode(self, stored: bytes) -> Document:
        # Usually this process wrote the stored document itself, so do not parse its
        # megabytes again.
        digest = _digest(stored)
        if digest != self._read[0]:
            self._read = (digest, decode(stored))
        return self._read[1]

    def _merge_into(self, document: Document, ours: Components) -> Components:
        written = self._attempts.get(document.writers.get(self._writer, 0))
        if written is None:
            return _merge(self._base, ours, document.components)
        # An earlier write seemed to fail but succeeded, so continue from its result.
        ours = _merge(written.ours, ours, written.written)
        return _merge(written.written, ours, document.components)

    async def _take_in(self, ours: Components, merged: Components) -> None:
        """Update the learners with the merged state, one group at a time.

        Requests are served between two groups. If the task is cancelled, the remaining
        groups are still updated, without a pause. If only some groups were updated and
        the base was not, the sums of these groups would be counted twice.
        """
        changed = self._changed(ours, merged)
        try:
            for name, key in changed:
                self._take_in_group(name, key, ours, merged)
                await asyncio.sleep(0)
        finally:
            for name, key in changed:
                self._take_in_group(name, key, ours, merged)
            self._base = merged
            self._attempts.clear()

    def _changed(self, ours: Components, merged: Components) -> Iterator[Where]:
        return iter(
            [
                (name, key)
                for name, groups in merged.items()
                for key, group in groups.items()
                if (then := self._then(name, key, ours)) is None
                or not then.same_as(group)
            ]
        )

    def _then(self, name: str, key: str, ours: Components) -> DecayedSums | None:
        # If a reload added this component in the meantime, the component started from
        # the base.
        return ours.get(name, self._base.get(name, {})).get(key)

    def _take_in_group(
        self, name: str, key: str, ours: Components, merged: Components
    ) -> None:
        # Look up the learner for each group, since a reload may replace it between two
        # groups.
        learner = next((one for one in self._learners() if one.component == name), None)
        if learner is None:
            return
        then, mine = self._then(name, key, ours), learner.group(key)
        base = {} if then is None else {key: then}
        here = {} if mine is None else {key: mine}
        learner.restore(merge(base, here, {key: merged[name][key]}))

    async def _on_thread(
        self, work: Callable[[], tuple[Components, SetAside | None]]
    ) -> tuple[Components, SetAside | None]:
        """Run blocking work on a daemon thread, which cannot delay exit."""
        loop = asyncio.get_running_loop()
        done: asyncio.Future[tuple[Components, SetAside | None]] = loop.create_future()

        def settle(set_outcome: Callable[[], None]) -> None:
            self._idle.set()
            if not done.done():  # otherwise it was cancelled
                set_outcome()

        def run() -> None:
            try:
                result = work()
                outcome = partial(done.set_result, result)
            except Exception as error:
                outcome = partial(done.set_exception, error)
            with contextlib.suppress(RuntimeError):  # the loop has closed
                loop.call_soon_threadsafe(settle, outcome)

        self._idle.clear()
        threading.Thread(target=run, name="state-store", daemon=True).start()
        return await done


def _kind(component: str) -> str:
    """Return a component's name without its version."""
    return component.partition(".")[0]


def _digest(document: bytes) -> bytes:
    return hashlib.blake2b(document, digest_size=16).digest()


async def _snapshot(learners: Sequence[Mergeable]) -> Components:
    """Copy the learned state, and serve waiting requests after each group."""
    components: dict[str, dict[str, DecayedSums]] = {}
    for learner in learners:
        groups = components[learner.component] = {}
        for key in learner.group_keys():
            group = learner.group(key)
            if group is not None:
                groups[key] = group
            await asyncio.sleep(0)
    return components


def _merge(base: Components, ours: Components, theirs: Components) -> Components:
    # Keep the components that only other processes have.
    return {
        name: merge(base.get(name, {}), ours[name], theirs.get(name, {}))
        if name in ours
        else theirs[name]
        for name in {**theirs, **ours}
    }


def _same(one: Components, other: Components) -> bool:
    return one.keys() == other.keys() and all(
        _same_groups(one[name], other[name]) for name in one
    )


def _same_groups(
    one: Mapping[str, DecayedSums], other: Mapping[str, DecayedSums]
) -> bool:
    return one.keys() == other.keys() and all(
        one[key].same_as(other[key]) for key in one
    )


def _latest(writers: Mapping[str, int], writer: str, number: int) -> dict[str, int]:
    kept = {name: n for name, n in writers.items() if name != writer}
    kept[writer] = number
    return dict(list(kept.items())[-_MAX_WRITERS:])
