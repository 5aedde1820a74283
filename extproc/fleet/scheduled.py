"""A request inside the scheduler, and what one step does."""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from enum import Enum

from extproc.fleet.block_pool import Block


class Status(Enum):
    """Where a sequence stands."""

    WAITING = "waiting"
    RUNNING = "running"
    PREEMPTED = "preempted"
    FINISHED = "finished"


@dataclass(slots=True, eq=False)
class Request:
    """One request inside the scheduler.

    Attributes:
        request_id: unique among those that are not finished.
        prompt_tokens: tokens of the prompt (> 0).
        output_tokens: tokens after which it ends by itself (> 0): the smaller of
            ``max_tokens`` and the length the model gives it.
        max_tokens: the limit that is known beforehand (>= ``output_tokens``).
        block_hashes: of its full blocks, prompt and answer, each standing for its
            tokens and all before them; those past the end are its own.
        num_output_tokens: output tokens so far; they survive a preemption.
        num_computed_tokens: tokens whose keys and values are in the cache, or will be
            after the steps that are scheduled.
        num_output_placeholders: output tokens that are scheduled but not known.
        num_hashed_blocks: of the blocks held, those in the prefix cache.
        num_preemptions: times evicted.
    """

    request_id: str
    prompt_tokens: int
    output_tokens: int
    max_tokens: int
    block_hashes: Sequence[Hashable] = ()
    num_output_tokens: int = 0
    num_computed_tokens: int = 0
    num_output_placeholders: int = 0
    num_hashed_blocks: int = 0
    num_preemptions: int = 0
    status: Status = Status.WAITING
    blocks: list[Block] = field(default_factory=list)

    @property
    def num_tokens(self) -> int:
        """Known tokens: the prompt and the output so far."""
        return self.prompt_tokens + self.num_output_tokens

    @property
    def num_blocks(self) -> int:
        """KV blocks held."""
        return len(self.blocks)

    @property
    def is_complete(self) -> bool:
        """Whether the tokens in flight certainly reach ``max_tokens``."""
        return self.num_output_placeholders > 0 and (
            self.num_output_tokens + self.num_output_placeholders >= self.max_tokens
        )

    def block_hash(self, index: int) -> Hashable:
        """The hash of a full block."""
        if index < len(self.block_hashes):
            return self.block_hashes[index]
        return self, index


@dataclass(frozen=True, slots=True)
class Step:
    """What one step did.

    With asynchronous scheduling, ``sampled`` and ``finished`` are of the step before.

    Attributes:
        scheduled: tokens computed for each request, in the order of scheduling.
        context_tokens: tokens in the cache of the scheduled requests before the
            step, which attention has to read.
        preempted: requests evicted before the step ran.
        sampled: requests that produced one output token.
        finished: requests that ended with that token.
        cached: tokens found in the prefix cache for each request that was admitted.
    """

    scheduled: dict[str, int]
    context_tokens: int
    preempted: tuple[str, ...]
    sampled: tuple[str, ...]
    finished: tuple[str, ...]
    cached: dict[str, int] = field(default_factory=dict)

    @property
    def num_scheduled_tokens(self) -> int:
        """Tokens of the whole step."""
        return sum(self.scheduled.values())
