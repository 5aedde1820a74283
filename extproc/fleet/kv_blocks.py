"""The KV-cache blocks of an instance, as counts, beside its prefix cache.

Blocks of requests that decode are counted by the instance, many steps at once; here is
what is free, what of that is cached, and what a request finds and leaves behind.
"""

from extproc.fleet.job import Job
from extproc.fleet.prefix_cache import Found, Holding, PrefixCache
from extproc.fleet.scheduler import SchedulerLimits

#: More than the admissions of an instance: cached after all else that a step caches.
_LATE = 1 << 60
#: Found of a job that has no part in the cache.
NOTHING = Found()


class KvBlocks:
    """The blocks of an instance.

    Jobs with a ``holding`` have a part in the cache: they may find something in it. Of
    the others only what they leave behind is known.

    Attributes:
        free: blocks that nobody holds, cached or not.
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
        """A job is queued: it may find what others have cached."""
        if not self.is_caching or job.prefix is None:
            return
        if job.prefix.keys:
            job.holding = self._cache.enter(job.prefix)
        else:
            # As in a look-up: full blocks, and never the last token.
            most = min(job.prefix.reported, job.prompt_tokens - 1)
            job.reported = most // self._block_size * self._block_size

    def take(self, count: int) -> None:
        """Allocate blocks, of which ``free`` must be enough."""
        self.free -= count
        if self.is_caching and self._cache.free > self.free:
            self._cache.trim(self.free)

    def find(self, job: Job, step: int) -> Found:
        """What is cached of a waiting job; its last token has to be computed.

        Args:
            step: count of steps whose decoded tokens are in the cache.
        """
        if job.holding is None:
            return NOTHING
        most = (job.known - 1) // self._block_size
        return self._cache.find(job.holding, most, step)

    def hold(self, job: Job, found: Found) -> None:
        """An admitted job takes over what was just found for it."""
        assert job.holding is not None
        job.holding.admission = job.admission
        if found.blocks:
            self._cache.hold(job.holding, found)
            self.free -= found.blocks - found.held

    def store(self, job: Job, full: int, step: int) -> None:
        """Cache the first ``full`` blocks of a job, allocated for this step."""
        holding = job.holding
        assert holding is not None
        if full > holding.hashed:
            self._cache.store(holding, full, (step, job.admission))

    def grow(self, job: Job) -> None:
        """A job decodes from now on, and is to decode more than one token."""
        assert job.holding is not None
        self._cache.grow(job.holding, job.offset)

    def stop(self, job: Job) -> None:
        """A job decodes no more; a token in flight is not known, and not cached."""
        assert job.holding is not None
        cached = job.computed - self._is_async
        self._cache.stop(job.holding, cached // self._block_size)

    def end(self, job: Job, step: int) -> None:
        """A job has ended, in this step: its blocks are free."""
        block_size = self._block_size
        blocks = -(-job.computed // block_size)
        if self.is_caching:
            # The last token is never computed, or never cached.
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
        """A job gives up its blocks, and may find them again."""
        block_size = self._block_size
        blocks = -(-job.computed // block_size)
        if self.is_caching:
            holding = job.holding
            if holding is None:
                # All its blocks are its own; those of its prompt are cached when they
                # are allocated, the others when their last token is known.
                known = min(job.computed, job.known - 1)
                decoded = job.computed - self._is_async
                holding = job.holding = Holding([])
                holding.hashed = max(known, decoded) // block_size
            blocks -= holding.hashed
            blocks += self._cache.release(holding, ends=False)
        self.free += blocks
