"""The prefix cache of an instance, in runs of blocks.

It keeps, finds and evicts exactly the blocks that
:class:`extproc.fleet.block_pool.BlockPool` does, which has one object a block. Here a
run is one object: successive blocks of a request that were cached together, have the
same holders and, once nobody holds them, succeed each other in the queue of free
blocks. A run is split when a request takes over a part of it, and shrinks from its end
when it is evicted. Blocks without a hash come first in that queue and are not here:
the caller that takes blocks calls :meth:`PrefixCache.trim` with what is left.

Which tokens are alike is said by keys (:class:`Prefix`), each for a stretch of tokens.
What follows the last key of a request is its own: nobody else can find it, so it is a
count while the request holds it, and one run while the request waits after a
preemption. Once the request has ended nothing finds it, and neighbors of that kind in
the queue are one run.

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
    reported: int = 0
    """Prompt tokens that the request's own usage says were found in a cache, with whom
    in common is not known: found on any instance, in blocks of its own. For a request
    without keys."""


class Run:
    """Cached blocks of one node, from ``start`` to before ``stop``.

    Attributes:
        node: None for blocks that are a request's own; then only their number counts.
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
    """What is cached of the blocks of one key.

    Attributes:
        growing: requests that decode here and may have filled blocks since.
    """

    __slots__ = ("growing", "key", "runs")

    def __init__(self, key: Hashable) -> None:
        self.key = key
        self.runs: list[Run] = []
        self.growing: dict[Holding, None] = {}


@dataclass(slots=True, eq=False)
class Holding:
    """A request's part in the cache."""

    path: list[tuple[Hashable, int]]
    """Keys of its blocks, each with the block before which it ends."""
    shared: int = 0
    """Blocks with a key; those from there on are its own."""
    remains: Run | None = None
    """What may be left of its own blocks since it was preempted."""
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
    remains: Run | None = None
    """Its own blocks at the end of it."""


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
        self._ring = Run(None, 0, 0, (0, 0), None)
        self._ring.earlier = self._ring.later = self._ring
        # The last run of the queue if nothing finds it any more.
        self._litter: Run | None = None

    def enter(self, prefix: Prefix) -> Holding:
        """A request that holds nothing yet."""
        size = self._block_size
        path = [
            (key, end // size)
            for key, end in zip(prefix.keys, prefix.ends, strict=True)
        ]
        return Holding(path, path[-1][1] if path else 0)

    def find(self, holding: Holding, most: int, step: int) -> Found:
        """The longest cached prefix of at most so many blocks, after this step."""
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
                self._take_out(run)
            run.holders += 1
            holding.pieces.append((run, stop))
        if found.remains is not None:
            self._take_out(found.remains)
        holding.remains = None
        holding.hashed = found.blocks

    def store(self, holding: Holding, full: int, order: tuple[int, int]) -> None:
        """Cache a request's blocks up to ``full`` (> ``holding.hashed``), at once."""
        self._add(holding, full, order, None)

    def grow(self, holding: Holding, offset: int) -> None:
        """The request decodes from now on."""
        holding.offset = offset
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

    def release(self, holding: Holding, *, ends: bool) -> int:
        """Give up what a request holds; return the cached blocks nobody holds now.

        Args:
            ends: whether nobody will look for the request's own blocks again.
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
        """Cached blocks become free that nothing will find."""
        if self._litter is not None:
            self._litter.stop += blocks
            self.free += blocks
        else:
            run = Run(None, 0, blocks, (0, 0), None, holders=0)
            self._queue(run)
            self._litter = run

    def _queue(self, run: Run) -> None:
        """A run becomes free, and the last to be evicted."""
        ring = self._ring
        last = ring.earlier
        run.earlier, run.later = last, ring
        last.later = ring.earlier = run
        self.free += run.stop - run.start
        self._litter = None

    def _take_out(self, run: Run) -> None:
        """A free run is held again."""
        run.earlier.later = run.later
        run.later.earlier = run.earlier
        self.free -= run.stop - run.start

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
        """Cache blocks from ``holding.hashed`` to ``full``, held by the request."""
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
        """Cut a run in two; return the higher part, freed before the lower one."""
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
