"""The decoding requests of an instance, summarized in a few numbers.

Each request computes one token per step. So its number of computed tokens is the step
count plus a constant offset, and the step count at which it ends is known when it
starts.
"""

from heapq import heappop, heappush

from extproc.fleet.job import Job


class Decoders:
    """The decoding jobs of an instance.

    Attributes:
        steps: number of steps that the instance has run.
        offsets: sum of the jobs' offsets.
        phases: number of jobs for each offset modulo the block size; the jobs in phase
            ``-steps`` need a block for the next token (``demand``).
        ends: a heap of (step count, admission, job); an entry is stale if the job's
            admission differs.
    """

    __slots__ = ("_block_size", "ends", "offsets", "phases", "steps")

    def __init__(self, block_size: int) -> None:
        self.steps = 0
        self.offsets = 0
        self.phases = [0] * block_size
        self._block_size = block_size
        self.ends: list[tuple[int, int, Job]] = []

    def join(self, job: Job, left: int) -> None:
        """Add a job that decodes for ``left`` steps, starting with the next step."""
        offset = job.offset = job.computed - self.steps
        self.offsets += offset
        self.phases[offset % self._block_size] += 1
        heappush(self.ends, (self.steps + left, job.admission, job))

    def leave(self, job: Job) -> None:
        """Remove a job."""
        offset = job.offset
        job.computed = self.steps + offset
        self.offsets -= offset
        self.phases[offset % self._block_size] -= 1

    def ended(self) -> list[Job]:
        """Return and forget the jobs that ended by this step, in order of admission."""
        ends = self.ends
        ended: list[Job] = []
        while ends and ends[0][0] <= self.steps:
            _, admission, job = heappop(ends)
            if job.admission == admission:
                ended.append(job)
        return ended

    def steps_to_end(self) -> int:
        """Return the number of steps until the first job ends; there must be a job."""
        ends = self.ends
        while ends[0][2].admission != ends[0][1]:
            heappop(ends)
        return ends[0][0] - self.steps

    def demand(self) -> int:
        """Return the number of blocks that the next step needs."""
        return self.phases[-self.steps % self._block_size]

    def blocks(self, steps: int, seqs: int) -> int:
        """Return the number of blocks that ``seqs`` jobs need in ``steps`` steps.

        Each job needs one block every ``block_size`` steps. The number for the
        remaining steps depends on the jobs' phases.
        """
        cycles, rest = divmod(steps, self._block_size)
        needed = cycles * seqs
        if rest:
            # In step k, counted from 0, the jobs in phase -(steps + k) need a block.
            last = -self.steps % self._block_size + 1
            first = last - rest
            if first < 0:
                needed += sum(self.phases[first:])
                first = 0
            needed += sum(self.phases[first:last])
        return needed

    def steps_within(self, free_blocks: int, seqs: int) -> int:
        """Return for how many steps the free blocks suffice for ``seqs`` jobs."""
        block_size = self._block_size
        cycles, left = divmod(free_blocks, seqs)
        steps = cycles * block_size
        for step in range(block_size):
            left -= self.phases[-(self.steps + step) % block_size]
            if left < 0:
                return steps + step
        return steps + block_size  # pragma: no cover  left < one cycle's demand
