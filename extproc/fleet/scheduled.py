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
    """One request inside the scheduler."""

    request_id: str
    """Unique among those that are not finished."""
    prompt_tokens: int
    """Tokens of the prompt (> 0)."""
    output_tokens: int
    """Tokens after which it ends by itself (> 0): the smaller of ``max_tokens`` and the
    length the model gives it."""
    max_tokens: int
    """The limit that is known beforehand (>= ``output_tokens``)."""
    block_hashes: Sequence[Hashable] = ()
    """Of its full blocks, prompt and answer, each standing for its tokens and all
    before them; those past the end are its own."""
    reported_tokens: int = 0
    """Tokens that are computed elsewhere and need no step, in full blocks, below the
    last token of the prompt; their blocks are the request's own."""
    num_output_tokens: int = 0
    """Output tokens so far; they survive a preemption."""
    num_computed_tokens: int = 0
    """Tokens whose keys and values are in the cache, or will be after the steps that
    are scheduled."""
    num_output_placeholders: int = 0
    """Output tokens that are scheduled but not known."""
    num_hashed_blocks: int = 0
    """Of the blocks held, those in the prefix cache."""
    num_preemptions: int = 0
    """Times evicted."""
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
    """

    scheduled: dict[str, int]
    """Tokens computed for each request, in the order of scheduling."""
    context_tokens: int
    """Tokens in the cache of the scheduled requests before the step, which attention
    has to read."""
    preempted: tuple[str, ...]
    """Requests evicted before the step ran."""
    sampled: tuple[str, ...]
    """Requests that produced one output token."""
    finished: tuple[str, ...]
    """Requests that ended with that token."""
    cached: dict[str, int] = field(default_factory=dict)
    """Tokens found in the prefix cache for each request that was admitted."""

    @property
    def num_scheduled_tokens(self) -> int:
        """Tokens of the whole step."""
        return sum(self.scheduled.values())
