"""The KV-cache blocks of one instance, with vLLM's prefix cache, block by block.

Each full block has a hash of its tokens and all tokens before them. A written block
enters the cache under its hash, and stays there after its requests have ended, until it
is reused for other tokens. Two blocks may have the same hash, because a request that
recomputes cached tokens keeps its own block. Lookups return the block that was cached
first.

Unused blocks wait in one queue and are taken from its front. On release, blocks without
a hash go to the front. Blocks with a hash go to the end in reverse order, so that the
start of a prompt survives longest. Blocks without a hash are therefore always taken
first. They are interchangeable, so this module only counts them.

Source: ``vllm/v1/core/block_pool.py`` and ``FreeKVCacheBlockQueue`` of
``vllm/v1/core/kv_cache_utils.py``, vLLM 0.32.0.
"""

from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass


@dataclass(slots=True, eq=False)
class Block:
    """One KV-cache block."""

    hash: Hashable | None = None
    """Hash of the block's tokens and all earlier tokens; None if the block is not
    cached."""
    holders: int = 0
    """Number of requests that use the block."""


class BlockPool:
    """All ``usable_blocks`` blocks of an instance."""

    def __init__(self, usable_blocks: int) -> None:
        self._unhashed = usable_blocks
        # The blocks in each dict are in the order in which they are to be taken or
        # found.
        self._free: dict[Block, None] = {}
        self._cached: dict[Hashable, dict[Block, None]] = {}

    @property
    def num_free(self) -> int:
        """Number of unused blocks, cached or not."""
        return self._unhashed + len(self._free)

    @property
    def num_hashes(self) -> int:
        """Number of different hashes of cached blocks, in use or not."""
        return len(self._cached)

    def find(self, hashes: Iterable[Hashable]) -> list[Block]:
        """Return the cached blocks for the longest cached prefix of the hashes."""
        found: list[Block] = []
        for block_hash in hashes:
            blocks = self._cached.get(block_hash)
            if blocks is None:
                break
            found.append(next(iter(blocks)))
        return found

    def hold(self, blocks: Iterable[Block]) -> None:
        """Add a user to blocks that were found."""
        for block in blocks:
            if block.holders == 0:
                del self._free[block]
            block.holders += 1

    def take(self, count: int) -> list[Block]:
        """Take free blocks for new tokens, and remove them from the cache.

        Args:
            count: number of blocks, at most :attr:`num_free`.
        """
        unhashed = min(count, self._unhashed)
        self._unhashed -= unhashed
        for _ in range(count - unhashed):
            self._evict(next(iter(self._free)))
        return [Block(holders=1) for _ in range(count)]

    def cache(self, block: Block, block_hash: Hashable) -> None:
        """Add a full block that is in use to the cache."""
        block.hash = block_hash
        self._cached.setdefault(block_hash, {})[block] = None

    def free(self, blocks: Sequence[Block]) -> None:
        """Release a request's blocks, given in the order of its tokens."""
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
