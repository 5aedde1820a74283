"""The requests of an instance that decode, as a few numbers for all of them.

Each computes one token a step, so its computed tokens are the count of steps plus an
offset of its own, and it ends at a count that is known when it begins.
"""

from heapq import heappop, heappush

from extproc.fleet.job import Job


class Decoders:
    """Those that decode in an instance.

    Attributes:
        steps: that the instance has taken.
        offsets: sum of the jobs' offsets.
        phases: jobs by their offset modulo the block size; those in phase ``-steps``
            need a block for the next token (``demand``).
        ends: a heap of (count of steps, admission, job); an entry is stale if the job
            has another admission.
    """

    __slots__ = ("_block_size", "ends", "offsets", "phases", "steps")

    def __init__(self, block_size: int) -> None:
        self.steps = 0
        self.offsets = 0
        self.phases = [0] * block_size
        self._block_size = block_size
        self.ends: list[tuple[int, int, Job]] = []

    def join(self, job: Job, left: int) -> None:
        """A job decodes from the next step on, for so many steps."""
        offset = job.offset = job.computed - self.steps
        self.offsets += offset
        self.phases[offset % self._block_size] += 1
        heappush(self.ends, (self.steps + left, job.admission, job))

    def leave(self, job: Job) -> None:
        """A job decodes no more."""
        offset = job.offset
        job.computed = self.steps + offset
        self.offsets -= offset
        self.phases[offset % self._block_size] -= 1

    def ended(self) -> list[Job]:
        """The jobs that end at this step, or are overdue, by admission; only once."""
        ends = self.ends
        ended: list[Job] = []
        while ends and ends[0][0] <= self.steps:
            _, admission, job = heappop(ends)
            if job.admission == admission:
                ended.append(job)
        return ended

    def steps_to_end(self) -> int:
        """Steps until the first job ends; there is one."""
        ends = self.ends
        while ends[0][2].admission != ends[0][1]:
            heappop(ends)
        return ends[0][0] - self.steps

    def demand(self) -> int:
        """Blocks that the next step takes."""
        return self.phases[-self.steps % self._block_size]

    def blocks(self, steps: int, seqs: int) -> int:
        """Blocks that the next so many steps of the ``seqs`` jobs take.

        Each job needs one every ``block_size`` steps, and the rest by phase.
        """
        cycles, rest = divmod(steps, self._block_size)
        needed = cycles * seqs
        if rest:
            # In step k, from 0 on, the jobs in phase -(steps + k).
            last = -self.steps % self._block_size + 1
            first = last - rest
            if first < 0:
                needed += sum(self.phases[first:])
                first = 0
            needed += sum(self.phases[first:last])
        return needed

    def steps_within(self, free_blocks: int, seqs: int) -> int:
        """Steps of the ``seqs`` jobs that so many free blocks are enough for."""
        block_size = self._block_size
        cycles, left = divmod(free_blocks, seqs)
        steps = cycles * block_size
        for step in range(block_size):
            left -= self.phases[-(self.steps + step) % block_size]
            if left < 0:
                return steps + step
        return steps + block_size  # pragma: no cover  left < one cycle's demand
