"""The prefix cache of an instance, in runs of blocks.

It keeps, finds and evicts exactly the blocks that
:class:`extproc.fleet.block_pool.BlockPool` does, which has one object a block. Here a
run is one object: successive blocks of a request that were cached together, have the
same holders and, once nobody holds them, succeed each other in the queue of free
blocks. A run is split when a request takes over a part of it, and shrinks from its end
when it is evicted. Blocks without a hash come first in that queue and are not here:
the caller that takes blocks calls :meth:`PrefixCache.trim` with what is left.

Which tokens are alike is said by keys (:class:`Prefix`), each for a stretch of tokens;
what follows the last key of a request is its own.

The blocks that fill up while requests decode are not visited one by one either. They
are accounted for when somebody looks for them, or when the request stops decoding.
"""

from collections.abc import Hashable
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Prefix:
    """What a request's tokens, prompt and answer, have in common with others'."""

    keys: tuple[Hashable, ...]
    """Two requests are alike up to a key's end exactly if they have the same keys up to
    it."""
    ends: tuple[int, ...]
    """Number of tokens at which each key ends, increasing, the same wherever the key is
    used."""


class Run:
    """Cached blocks of one node, from ``start`` to before ``stop``.

    Attributes:
        order: (step, admission) of the request that cached them. If ``offset`` is not
            None, it cached them one by one while it decoded, each at the step at which
            its computed tokens, ``offset`` more than the steps, filled the block.
        higher: what was split from the end of it, for requests that hold both.
        earlier, later: neighbors in the queue of free blocks, if nobody holds it.
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
        node: "Node",
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
    """What is cached of the blocks of one key.

    Attributes:
        key: None for what is a request's own.
        growing: requests that decode here and may have filled blocks since.
    """

    __slots__ = ("growing", "key", "runs")

    def __init__(self, key: Hashable | None) -> None:
        self.key = key
        self.runs: list[Run] = []
        self.growing: dict[Holding, None] = {}


@dataclass(slots=True, eq=False)
class Holding:
    """A request's part in the cache."""

    path: list[tuple[Hashable, int]]
    """Keys of its blocks, each with the block before which it ends."""
    own: Node | None = None
    hashed: int = 0
    """Blocks, from the first on, that it holds and that are in the cache."""
    pieces: list[tuple[Run, int]] = field(default_factory=list)
    """The first run of each piece held and the block before which it ends."""
    offset: int = 0
    """Computed tokens less steps while it decodes."""
    grown_from: int = 0
    """``hashed`` when it began to decode."""
    admission: int = 0
    """The number of its admission; orders requests within a step."""


@dataclass(slots=True)
class Found:
    """The longest cached prefix of a request."""

    blocks: int = 0
    """Of it."""
    held: int = 0
    """Of those, held by somebody."""
    is_final: bool = True
    """Whether no request that decodes can make it longer."""
    picks: list[tuple[Run, int, int]] = field(default_factory=list)


_NOTHING = Found()


class PrefixCache:
    """The cached blocks of an instance.

    Attributes:
        free: cached blocks that nobody holds.
    """

    def __init__(self, block_size: int) -> None:
        self.free = 0
        self._block_size = block_size
        self._nodes: dict[Hashable, Node] = {}
        # The queue of free runs is a ring that begins and ends here.
        self._ring = Run(Node(None), 0, 0, (0, 0), None)
        self._ring.earlier = self._ring.later = self._ring

    def enter(self, prefix: Prefix | None) -> Holding:
        """A request that holds nothing yet."""
        if prefix is None:
            return Holding([])
        size = self._block_size
        return Holding(
            [
                (key, end // size)
                for key, end in zip(prefix.keys, prefix.ends, strict=True)
            ]
        )

    def find(self, holding: Holding, most: int, step: int) -> Found:
        """The longest cached prefix of at most so many blocks, after this step."""
        if not holding.path and holding.own is None:
            return _NOTHING
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
        own = holding.own
        if own is not None and own.runs and position < most:
            self._follow(own, position, most, found)
        return found

    def hold(self, holding: Holding, found: Found) -> None:
        """Take over what was found for this request, with nothing done in between."""
        for run, start, stop in found.picks:
            while run.stop <= start:
                assert run.higher is not None
                run = run.higher
            if run.start < start:
                run = self._split(run, start)
            if run.stop > stop:
                self._split(run, stop)
            if run.holders == 0:
                run.earlier.later = run.later
                run.later.earlier = run.earlier
                self.free -= stop - start
            run.holders += 1
            holding.pieces.append((run, stop))
        holding.hashed = found.blocks

    def store(self, holding: Holding, full: int, order: tuple[int, int]) -> None:
        """Cache a request's blocks up to ``full`` (> ``holding.hashed``), at once."""
        self._add(holding, full, order, None)

    def grow(self, holding: Holding, offset: int) -> None:
        """The request decodes from now on."""
        holding.offset = offset
        if not holding.path:
            return
        holding.grown_from = holding.hashed
        for key, end in holding.path:
            if end > holding.hashed:
                self._node(key).growing[holding] = None

    def settle(self, holding: Holding, full: int) -> None:
        """Cache what a request has filled by decoding, up to ``full`` blocks."""
        if full > holding.hashed:
            self._add(holding, full, (0, holding.admission), holding.offset)

    def stop(self, holding: Holding, full: int) -> None:
        """The request has filled ``full`` blocks and decodes no more."""
        if full > holding.hashed:
            self._add(holding, full, (0, holding.admission), holding.offset)
        for key, end in holding.path:
            if end > holding.grown_from:
                node = self._nodes.get(key)
                if node is not None:
                    node.growing.pop(holding, None)
                    self._forget(node)

    def release(self, holding: Holding) -> int:
        """Give up what a request holds; return the cached blocks nobody holds now."""
        before = self.free
        runs: list[Run] = []
        for first, stop in holding.pieces:
            run = first
            runs.append(run)
            while run.stop < stop:
                assert run.higher is not None
                run = run.higher
                runs.append(run)
        runs.reverse()
        ring = self._ring
        for run in runs:
            run.holders -= 1
            if run.holders == 0:
                last = ring.earlier
                run.earlier, run.later = last, ring
                last.later = ring.earlier = run
                self.free += run.stop - run.start
        holding.pieces = []
        holding.hashed = 0
        return self.free - before

    def trim(self, free_blocks: int) -> None:
        """Evict what does not fit in the blocks that are free after an allocation."""
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
            node.runs.remove(run)
            if node.key is not None:
                self._forget(node)

    def _add(
        self, holding: Holding, full: int, order: tuple[int, int], offset: int | None
    ) -> None:
        """Cache blocks from ``holding.hashed`` to ``full``, held by the request."""
        position = holding.hashed
        holding.hashed = full
        pieces = holding.pieces
        for key, end in holding.path:
            if position < end:
                stop = min(end, full)
                run = Run(self._node(key), position, stop, order, offset)
                run.node.runs.append(run)
                pieces.append((run, stop))
                position = stop
                if position == full:
                    return
        own = holding.own
        if own is None:
            own = holding.own = Node(None)
        elif len(own.runs) == 1 and pieces:
            # Whatever is cached beside it comes later, so that its order will do.
            run = own.runs[0]
            if run is pieces[-1][0] and run.stop == position:
                run.stop = full
                pieces[-1] = (run, full)
                return
        run = Run(own, position, full, order, offset)
        own.runs.append(run)
        pieces.append((run, full))

    def _node(self, key: Hashable) -> Node:
        node = self._nodes.get(key)
        if node is None:
            node = self._nodes[key] = Node(key)
        return node

    def _forget(self, node: Node) -> None:
        if not node.runs and not node.growing and node.key is not None:
            del self._nodes[node.key]

    def _split(self, run: Run, position: int) -> Run:
        """Cut a run in two; return the higher part, freed before the lower one."""
        higher = Run(run.node, position, run.stop, run.order, run.offset, run.holders)
        higher.higher = run.higher
        run.higher = higher
        run.stop = position
        run.node.runs.append(higher)
        if run.holders == 0:
            before = run.earlier
            before.later = run.earlier = higher
            higher.earlier, higher.later = before, run
        return higher

    def _follow(self, node: Node, position: int, stop: int, found: Found) -> int:
        """Pick the cached blocks from ``position`` on; return where they end."""
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
        """The run whose block was cached first, and up to where that is certain."""
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
