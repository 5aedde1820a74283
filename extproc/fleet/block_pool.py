"""The KV-cache blocks of one instance, with vLLM's prefix cache, block by block.

Each full block has a hash of its tokens and all tokens before them. A written block
enters the cache under its hash, and stays there after its requests have ended, until it
is reused for other tokens. Two blocks may have the same hash, since a request that
recomputes cached tokens keeps its own block; lookups return the one cached first.

Unused blocks wait in one queue and are taken from its front. On release, blocks without
a hash go to the front and blocks with one to the end, the last block of a request
before its first, so that the start of a prompt survives longest. So blocks without a
hash are always taken first; they are interchangeable, and only counted here.

Source: ``vllm/v1/core/block_pool.py`` and ``FreeKVCacheBlockQueue`` of
``vllm/v1/core/kv_cache_utils.py``, vLLM 0.32.0.
"""

from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass


@dataclass(slots=True, eq=False)
class Block:
    """One KV-cache block."""

    hash: Hashable | None = None
    """Hash of its tokens and all tokens before them; None if it is not cached."""
    holders: int = 0
    """Number of requests that use it."""


class BlockPool:
    """All blocks of an instance, ``usable_blocks`` in number."""

    def __init__(self, usable_blocks: int) -> None:
        self._unhashed = usable_blocks
        # In both dicts, the first key is the first to be taken or found.
        self._free: dict[Block, None] = {}
        self._cached: dict[Hashable, dict[Block, None]] = {}

    @property
    def num_free(self) -> int:
        """Number of unused blocks, cached or not."""
        return self._unhashed + len(self._free)

    @property
    def num_hashes(self) -> int:
        """Number of different hashes in the cache, of blocks used or not."""
        return len(self._cached)

    def find(self, hashes: Iterable[Hashable]) -> list[Block]:
        """Return the cached blocks of the longest prefix of these hashes."""
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
            count: at most :attr:`num_free`.
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
