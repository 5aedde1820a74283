"""The decoding requests of an instance, as a few numbers for all of them.

Each computes one token a step, so its number of computed tokens is the step count plus
a constant offset, and the step count at which it ends is known at its start.
"""

from heapq import heappop, heappush

from extproc.fleet.job import Job


class Decoders:
    """The decoding jobs of an instance.

    Attributes:
        steps: number of steps that the instance has run.
        offsets: sum of the jobs' offsets.
        phases: jobs by their offset modulo the block size; the jobs in phase ``-steps``
            need a block for the next token (``demand``).
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
        """Add a job that decodes for ``left`` steps from the next one on."""
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
        """Return the jobs that end at this step or before, by admission; only once."""
        ends = self.ends
        ended: list[Job] = []
        while ends and ends[0][0] <= self.steps:
            _, admission, job = heappop(ends)
            if job.admission == admission:
                ended.append(job)
        return ended

    def steps_to_end(self) -> int:
        """Return the steps until the first job ends; requires at least one job."""
        ends = self.ends
        while ends[0][2].admission != ends[0][1]:
            heappop(ends)
        return ends[0][0] - self.steps

    def demand(self) -> int:
        """Return the number of blocks that the next step needs."""
        return self.phases[-self.steps % self._block_size]

    def blocks(self, steps: int, seqs: int) -> int:
        """Return the number of blocks that ``seqs`` jobs need for the next steps.

        Each job needs one every ``block_size`` steps; the remainder depends on phase.
        """
        cycles, rest = divmod(steps, self._block_size)
        needed = cycles * seqs
        if rest:
            # In step k, counted from 0, the jobs in phase -(steps + k) need one.
            last = -self.steps % self._block_size + 1
            first = last - rest
            if first < 0:
                needed += sum(self.phases[first:])
                first = 0
            needed += sum(self.phases[first:last])
        return needed

    def steps_within(self, free_blocks: int, seqs: int) -> int:
        """Return how many steps of ``seqs`` jobs the free blocks are enough for."""
        block_size = self._block_size
        cycles, left = divmod(free_blocks, seqs)
        steps = cycles * block_size
        for step in range(block_size):
            left -= self.phases[-(self.steps + step) % block_size]
            if left < 0:
                return steps + step
        return steps + block_size  # pragma: no cover  left < one cycle's demand
