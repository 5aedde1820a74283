"""The KV-cache blocks of an instance as counts, together with its prefix cache.

The instance itself counts the blocks of decoding requests for many steps at once. This
module tracks the free blocks, which of them are cached, and which cached blocks
requests find at admission and leave at their end.
"""

from extproc.fleet.job import Job
from extproc.fleet.prefix_cache import Found, Holding, PrefixCache
from extproc.fleet.scheduler import SchedulerLimits

#: Larger than any admission number, for blocks cached after all others in a step.
_LATE = 1 << 60
#: The result for a job that does not use the prefix cache.
NOTHING = Found()


class KvBlocks:
    """The blocks of an instance.

    Jobs with a ``holding`` use the prefix cache and may find blocks there. For other
    jobs, only the blocks that remain after their end are tracked.

    Attributes:
        free: number of unused blocks, cached or not.
        is_caching: whether there is a prefix cache.
    """

    __slots__ = ("_block_size", "_cache", "_is_async", "free", "is_caching")

    def __init__(self, limits: SchedulerLimits) -> None:
        self.free = limits.usable_blocks
        self.is_caching = limits.enable_prefix_caching
        self._block_size = limits.block_size
        self._cache = PrefixCache(limits.block_size)
        self._is_async = limits.async_scheduling

    def enter(self, job: Job) -> None:
        """Register a queued job, which may find blocks cached by other jobs."""
        if not self.is_caching or job.prefix is None:
            return
        if job.prefix.keys:
            job.holding = self._cache.enter(job.prefix)
        else:
            # As in a lookup, count full blocks only, without the last token.
            most = min(job.prefix.reported, job.prompt_tokens - 1)
            job.reported = most // self._block_size * self._block_size

    def take(self, count: int) -> None:
        """Allocate blocks; ``free`` must be large enough."""
        self.free -= count
        if self.is_caching and self._cache.free > self.free:
            self._cache.trim(self.free)

    def find(self, job: Job, step: int) -> Found:
        """Return the cached blocks that a waiting job finds, without its last token.

        Args:
            step: number of steps whose decoded tokens count as cached.
        """
        if job.holding is None:
            return NOTHING
        most = (job.known - 1) // self._block_size
        return self._cache.find(job.holding, most, step)

    def hold(self, job: Job, found: Found) -> None:
        """Add an admitted job as a user of the blocks that :meth:`find` returned."""
        assert job.holding is not None
        job.holding.admission = job.admission
        if found.blocks:
            self._cache.hold(job.holding, found)
            self.free -= found.blocks - found.held

    def store(self, job: Job, full: int, step: int) -> None:
        """Cache the first ``full`` blocks of a job when this step allocates them."""
        holding = job.holding
        assert holding is not None
        if full > holding.hashed:
            self._cache.store(holding, full, (step, job.admission))

    def grow(self, job: Job) -> None:
        """Register that a job starts to decode more than one token."""
        assert job.holding is not None
        self._cache.grow(job.holding, job.offset)

    def stop(self, job: Job) -> None:
        """Register that a job stops decoding, without caching its token in flight."""
        assert job.holding is not None
        cached = job.computed - self._is_async
        self._cache.stop(job.holding, cached // self._block_size)

    def end(self, job: Job, step: int) -> None:
        """Free the blocks of a job that ended in this step."""
        block_size = self._block_size
        blocks = -(-job.computed // block_size)
        if self.is_caching:
            # Leave out the last token, which is either not computed or computed but not
            # cached.
            full = (job.tokens - 1) // block_size
            holding = job.holding
            if holding is None:
                self._cache.litter(full)
            else:
                if full > holding.hashed:
                    order = (step, _LATE + job.admission)
                    self._cache.store(holding, full, order)
                blocks -= full
                blocks += self._cache.release(holding, ends=True)
        self.free += blocks

    def preempt(self, job: Job) -> None:
        """Free the blocks of a preempted job, which may find them again later."""
        block_size = self._block_size
        blocks = -(-job.computed // block_size)
        if self.is_caching:
            holding = job.holding
            if holding is None:
                # No block is shared. The prompt's blocks are cached at allocation, and
                # every other block as soon as its last token is known.
                known = min(job.computed, job.known - 1)
                decoded = job.computed - self._is_async
                holding = job.holding = Holding([])
                holding.hashed = max(known, decoded) // block_size
            blocks -= holding.hashed
            blocks += self._cache.release(holding, ends=False)
        self.free += blocks
