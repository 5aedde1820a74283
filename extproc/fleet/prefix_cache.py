"""The prefix cache of an instance, stored as runs of blocks.

This cache stores, finds and evicts exactly the same blocks as
:class:`extproc.fleet.block_pool.BlockPool`, which uses one object per block. Here one
object is a run, which means consecutive blocks of a request that were cached together,
have the same users and, once unused, are consecutive in the queue of free blocks. A run
is split if a request reuses a part of it, and shrinks from its end on eviction. Blocks
without a hash come first in the queue and are not represented here, so the caller that
allocates blocks calls :meth:`PrefixCache.trim` with the number of free blocks that
remain.

Each key (:class:`Prefix`) identifies a range of equal tokens. The tokens after a
request's last key are private, so no other request can find their blocks. While the
request uses these blocks, only their number is stored; while it waits after a
preemption, they are one run. After the request's end, no request can find them, and
those that are adjacent in the queue form one run.

Blocks that fill up during decoding are not visited one by one either. They enter the
cache at the next lookup, or when the request stops decoding.
"""

from collections.abc import Hashable
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Prefix:
    """Keys of the tokens that a request shares with other requests."""

    keys: tuple[Hashable, ...]
    """Two requests have equal tokens up to the end of a key if and only if all keys up
    to this one are equal."""
    ends: tuple[int, ...]
    """Number of tokens at which each key ends, in increasing order. A key ends at the
    same number in all requests."""
    reported: int = 0
    """Number of cached prompt tokens according to the request's own usage, for a
    request without keys. Since it is unknown which requests share these tokens, the
    request finds them on every instance, in private blocks."""


class Run:
    """Cached blocks of one node, from ``start`` to ``stop`` - 1.

    Attributes:
        node: node of the blocks; None for private blocks of a request, of which only
            the number matters.
        order: (step, admission) of the request that cached the blocks. If ``offset`` is
            not None, the request cached the blocks one by one during decoding. It
            filled a block at the step at which its number of computed tokens, the step
            count plus ``offset``, reached the block's end.
        higher: the run that was split from the end of this one, for requests that use
            both.
        earlier, later: neighbors in the queue of free blocks, if the run is unused.
    """

    __slots__ = (
        "earlier",
        "higher",
        "holders",
        "later",
        "node",
        "offset",
        "order",
        "start",
        "stop",
    )

    def __init__(
        self,
        node: "Node | None",
        start: int,
        stop: int,
        order: tuple[int, int],
        offset: int | None,
        holders: int = 1,
    ) -> None:
        self.node = node
        self.start = start
        self.stop = stop
        self.order = order
        self.offset = offset
        self.holders = holders
        self.higher: Run | None = None
        self.earlier: Run
        self.later: Run


class Node:
    """The cached blocks of one key.

    Attributes:
        growing: requests that decode tokens of this key and may have filled more
            blocks.
    """

    __slots__ = ("growing", "key", "runs")

    def __init__(self, key: Hashable) -> None:
        self.key = key
        self.runs: list[Run] = []
        self.growing: dict[Holding, None] = {}


@dataclass(slots=True, eq=False)
class Holding:
    """The blocks of one request in the prefix cache."""

    path: list[tuple[Hashable, int]]
    """Keys of the request's blocks, each with the index after the key's last block."""
    shared: int = 0
    """Number of blocks with a key; later blocks are private."""
    remains: Run | None = None
    """The private blocks that remain since the request's preemption, if any."""
    hashed: int = 0
    """Number of leading blocks that are cached and that the request uses."""
    pieces: list[tuple[Run, int]] = field(default_factory=list)
    """For each part in use, its first run and the index after its last block."""
    offset: int = 0
    """Number of computed tokens minus step count, during decoding."""
    grown_from: int = 0
    """Value of ``hashed`` at the start of decoding."""
    admission: int = 0
    """The request's admission number, which orders requests within a step."""


@dataclass(slots=True)
class Found:
    """The longest cached prefix of a request."""

    blocks: int = 0
    """Number of blocks of the prefix."""
    held: int = 0
    """Number of blocks of the prefix that any request uses."""
    is_final: bool = True
    """Whether no decoding request can extend the prefix."""
    picks: list[tuple[Run, int, int]] = field(default_factory=list)
    remains: Run | None = None
    """The request's private blocks at the end of the prefix."""


class PrefixCache:
    """The cached blocks of an instance.

    Attributes:
        free: number of cached, unused blocks.
    """

    def __init__(self, block_size: int) -> None:
        self.free = 0
        self._block_size = block_size
        self._nodes: dict[Hashable, Node] = {}
        # The queue of free runs is a ring that starts and ends here.
        self._ring = Run(None, 0, 0, (0, 0), None)
        self._ring.earlier = self._ring.later = self._ring
        # The last run of the queue, if no lookup can find this run any more.
        self._litter: Run | None = None

    def enter(self, prefix: Prefix) -> Holding:
        """Return the state of a request that uses no blocks yet."""
        size = self._block_size
        path = [
            (key, end // size)
            for key, end in zip(prefix.keys, prefix.ends, strict=True)
        ]
        return Holding(path, path[-1][1] if path else 0)

    def find(self, holding: Holding, most: int, step: int) -> Found:
        """Return the longest prefix cached after a step, at most ``most`` blocks."""
        found = Found()
        position = 0
        for key, end in holding.path:
            if position >= most:
                return found
            if position >= end:
                continue
            node = self._nodes.get(key)
            if node is None:
                return found
            if node.growing:
                found.is_final = False
                for other in list(node.growing):
                    self.settle(other, (step + other.offset) // self._block_size)
            stop = min(end, most)
            position = self._follow(node, position, stop, found)
            if position < stop:
                return found
        remains = holding.remains
        if remains is not None and remains.stop > remains.start:
            found.remains = remains
            found.blocks += remains.stop - remains.start
        return found

    def hold(self, holding: Holding, found: Found) -> None:
        """Add the request as a user of the blocks found in the same step."""
        for run, start, stop in found.picks:
            while run.stop <= start:
                assert run.higher is not None
                run = run.higher
            if run.start < start:
                run = self._split(run, start)
            if run.stop > stop:
                self._split(run, stop)
            if run.holders == 0:
                self._take_out(run)
            run.holders += 1
            holding.pieces.append((run, stop))
        if found.remains is not None:
            self._take_out(found.remains)
        holding.remains = None
        holding.hashed = found.blocks

    def store(self, holding: Holding, full: int, order: tuple[int, int]) -> None:
        """Cache a request's first ``full`` (> ``holding.hashed``) blocks at once."""
        self._add(holding, full, order, None)

    def grow(self, holding: Holding, offset: int) -> None:
        """Register that the request starts to decode."""
        holding.offset = offset
        holding.grown_from = holding.hashed
        for key, end in holding.path:
            if end > holding.hashed:
                self._node(key).growing[holding] = None

    def settle(self, holding: Holding, full: int) -> None:
        """Cache the request's first ``full`` blocks, which decoding has filled."""
        if full > holding.hashed:
            self._add(holding, full, (0, holding.admission), holding.offset)

    def stop(self, holding: Holding, full: int) -> None:
        """Register that the request stops decoding with ``full`` filled blocks."""
        if full > holding.hashed:
            self._add(holding, full, (0, holding.admission), holding.offset)
        for key, end in holding.path:
            if end > holding.grown_from:
                node = self._nodes.get(key)
                if node is not None:
                    node.growing.pop(holding, None)
                    self._forget(node)

    def release(self, holding: Holding, *, ends: bool) -> int:
        """Release a request's blocks; return the number of cached blocks now unused.

        Args:
            ends: whether the request ends, so that no lookup finds its private blocks
                again.
        """
        before = self.free
        own = holding.hashed - holding.shared
        if own > 0 and ends:
            self.litter(own)
        elif own > 0:
            holding.remains = Run(None, 0, own, (0, 0), None, holders=0)
            self._queue(holding.remains)
        runs: list[Run] = []
        for first, stop in holding.pieces:
            run = first
            runs.append(run)
            while run.stop < stop:
                assert run.higher is not None
                run = run.higher
                runs.append(run)
        runs.reverse()
        for run in runs:
            run.holders -= 1
            if run.holders == 0:
                self._queue(run)
        holding.pieces = []
        holding.hashed = 0
        return self.free - before

    def litter(self, blocks: int) -> None:
        """Add free cached blocks that no lookup will find."""
        if self._litter is not None:
            self._litter.stop += blocks
            self.free += blocks
        else:
            run = Run(None, 0, blocks, (0, 0), None, holders=0)
            self._queue(run)
            self._litter = run

    def _queue(self, run: Run) -> None:
        """Add a run to the end of the queue, as the last to be evicted."""
        ring = self._ring
        last = ring.earlier
        run.earlier, run.later = last, ring
        last.later = ring.earlier = run
        self.free += run.stop - run.start
        self._litter = None

    def _take_out(self, run: Run) -> None:
        """Remove a run from the queue, since it is in use again."""
        run.earlier.later = run.later
        run.later.earlier = run.earlier
        self.free -= run.stop - run.start

    def trim(self, free_blocks: int) -> None:
        """Evict unused cached blocks until at most ``free_blocks`` of them remain."""
        excess = self.free - free_blocks
        if excess <= 0:
            return
        self.free = free_blocks
        ring = self._ring
        while excess:
            run = ring.later
            size = run.stop - run.start
            if size > excess:
                run.stop -= excess
                return
            excess -= size
            ring.later = run.later
            run.later.earlier = ring
            node = run.node
            if node is not None:
                node.runs.remove(run)
                self._forget(node)
            else:
                run.stop = run.start
                if run is self._litter:
                    self._litter = None

    def _add(
        self, holding: Holding, full: int, order: tuple[int, int], offset: int | None
    ) -> None:
        """Cache blocks ``holding.hashed`` to ``full`` - 1, which the request uses."""
        position = holding.hashed
        holding.hashed = full
        pieces = holding.pieces
        for key, end in holding.path:
            if position < end:
                stop = min(end, full)
                node = self._node(key)
                run = Run(node, position, stop, order, offset)
                node.runs.append(run)
                pieces.append((run, stop))
                position = stop
                if position == full:
                    return

    def _node(self, key: Hashable) -> Node:
        node = self._nodes.get(key)
        if node is None:
            node = self._nodes[key] = Node(key)
        return node

    def _forget(self, node: Node) -> None:
        if not node.runs and not node.growing:
            del self._nodes[node.key]

    def _split(self, run: Run, position: int) -> Run:
        """Split a run; return the higher part, which was freed before the lower one."""
        node = run.node
        assert node is not None
        higher = Run(node, position, run.stop, run.order, run.offset, run.holders)
        higher.higher = run.higher
        run.higher = higher
        run.stop = position
        node.runs.append(higher)
        if run.holders == 0:
            before = run.earlier
            before.later = run.earlier = higher
            higher.earlier, higher.later = before, run
        return higher

    def _follow(self, node: Node, position: int, stop: int, found: Found) -> int:
        """Collect cached blocks from ``position`` on; return the index after them."""
        while position < stop:
            run, until = self._oldest(node.runs, position, stop)
            if run is None:
                break
            found.picks.append((run, position, until))
            found.blocks += until - position
            if run.holders:
                found.held += until - position
            position = until
        return position

    def _oldest(
        self, runs: list[Run], position: int, stop: int
    ) -> tuple[Run | None, int]:
        """Return the run cached first at a position, and the index after its part."""
        covering = []
        for run in runs:
            if run.start > position:
                stop = min(stop, run.start)
            elif run.stop > position:
                covering.append(run)
        if not covering:
            return None, stop
        if len(covering) == 1:
            return covering[0], min(covering[0].stop, stop)
        filled = (position + 1) * self._block_size

        def cached_at(run: Run) -> tuple[int, int]:
            if run.offset is None:
                return run.order
            return filled - run.offset, run.order[1]

        return min(covering, key=cached_at), position + 1
