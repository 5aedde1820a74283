"""The KV-cache blocks of one instance, with vLLM's prefix cache, block by block.

Each full block has a hash that stands for its tokens and all before them. A block that
is written goes into the cache under its hash and stays there when nobody holds it any
longer, until it is taken for other tokens. Two blocks may have the same hash, since a
request that computes what another has computed keeps its own; the one cached first is
the one that is found.

Blocks that nobody holds wait in one queue and are taken from its front. Those without a
hash are put at the front when they are freed, those with one at the end, the last block
of a request before its first, so that the head of a prompt survives longest. So blocks
without a hash always come first, which of them is taken does not matter, and they are a
count here.

Source: ``vllm/v1/core/block_pool.py`` and ``FreeKVCacheBlockQueue`` of
``vllm/v1/core/kv_cache_utils.py``, vLLM 0.32.0.
"""

from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass


@dataclass(slots=True, eq=False)
class Block:
    """One KV-cache block."""

    hash: Hashable | None = None
    """Of its tokens and all before them; None while it is not in the cache."""
    holders: int = 0
    """Requests that hold it."""


class BlockPool:
    """The blocks of an instance, ``usable_blocks`` in all."""

    def __init__(self, usable_blocks: int) -> None:
        self._unhashed = usable_blocks
        # Of both, the first key is the first to be taken, or found.
        self._free: dict[Block, None] = {}
        self._cached: dict[Hashable, dict[Block, None]] = {}

    @property
    def num_free(self) -> int:
        """Blocks that nobody holds, in the cache or not."""
        return self._unhashed + len(self._free)

    @property
    def num_hashes(self) -> int:
        """Different hashes in the cache, of blocks held or not."""
        return len(self._cached)

    def find(self, hashes: Iterable[Hashable]) -> list[Block]:
        """The blocks of the longest run of these hashes that is in the cache."""
        found: list[Block] = []
        for block_hash in hashes:
            blocks = self._cached.get(block_hash)
            if blocks is None:
                break
            found.append(next(iter(blocks)))
        return found

    def hold(self, blocks: Iterable[Block]) -> None:
        """Hold blocks that were found."""
        for block in blocks:
            if block.holders == 0:
                del self._free[block]
            block.holders += 1

    def take(self, count: int) -> list[Block]:
        """Take free blocks for new tokens; those in the cache leave it.

        Args:
            count: at most :attr:`num_free`.
        """
        unhashed = min(count, self._unhashed)
        self._unhashed -= unhashed
        for _ in range(count - unhashed):
            self._evict(next(iter(self._free)))
        return [Block(holders=1) for _ in range(count)]

    def cache(self, block: Block, block_hash: Hashable) -> None:
        """Put a held, full block into the cache."""
        block.hash = block_hash
        self._cached.setdefault(block_hash, {})[block] = None

    def free(self, blocks: Sequence[Block]) -> None:
        """Give up a request's blocks, in the order of its tokens."""
        for block in reversed(blocks):
            block.holders -= 1
            if block.holders:
                continue
            if block.hash is None:
                self._unhashed += 1
            else:
                self._free[block] = None

    def _evict(self, block: Block) -> None:
        del self._free[block]
        blocks = self._cached[block.hash]
        del blocks[block]
        if not blocks:
            del self._cached[block.hash]
