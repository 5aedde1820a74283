"""A request in the scheduler, and the record of one step."""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from enum import Enum

from extproc.fleet.block_pool import Block


class Status(Enum):
    """The state of a request."""

    WAITING = "waiting"
    RUNNING = "running"
    PREEMPTED = "preempted"
    FINISHED = "finished"


@dataclass(slots=True, eq=False)
class Request:
    """One request in the scheduler."""

    request_id: str
    """Unique among unfinished requests."""
    prompt_tokens: int
    """Tokens of the prompt (> 0)."""
    output_tokens: int
    """Number of tokens at which it ends by itself (> 0): the smaller of ``max_tokens``
    and the model's own length."""
    max_tokens: int
    """The limit known in advance (>= ``output_tokens``)."""
    block_hashes: Sequence[Hashable] = ()
    """Hashes of its full blocks, prompt and answer, each for its tokens and all before
    them; blocks past the end of the list are private."""
    reported_tokens: int = 0
    """Tokens computed elsewhere, which need no step: full blocks before the last token
    of the prompt. Their blocks are private."""
    num_output_tokens: int = 0
    """Output tokens so far, which a preemption keeps."""
    num_computed_tokens: int = 0
    """Tokens whose keys and values are in the cache now or after the steps that are
    scheduled."""
    num_output_placeholders: int = 0
    """Output tokens that are scheduled but not yet known."""
    num_hashed_blocks: int = 0
    """Number of its blocks that are in the prefix cache."""
    num_preemptions: int = 0
    """Number of its preemptions."""
    status: Status = Status.WAITING
    blocks: list[Block] = field(default_factory=list)

    @property
    def num_tokens(self) -> int:
        """Number of known tokens: the prompt and the output so far."""
        return self.prompt_tokens + self.num_output_tokens

    @property
    def num_blocks(self) -> int:
        """Number of its KV blocks."""
        return len(self.blocks)

    @property
    def is_complete(self) -> bool:
        """Whether the tokens in flight are certain to reach ``max_tokens``."""
        return self.num_output_placeholders > 0 and (
            self.num_output_tokens + self.num_output_placeholders >= self.max_tokens
        )

    def block_hash(self, index: int) -> Hashable:
        """Return the hash of a full block."""
        if index < len(self.block_hashes):
            return self.block_hashes[index]
        return self, index


@dataclass(frozen=True, slots=True)
class Step:
    """The record of one step.

    With asynchronous scheduling, ``sampled`` and ``finished`` are the previous step's.
    """

    scheduled: dict[str, int]
    """Tokens computed for each request, in the order of scheduling."""
    context_tokens: int
    """Cached tokens of the scheduled requests before the step, which attention reads.
    """
    preempted: tuple[str, ...]
    """Requests evicted before the step ran."""
    sampled: tuple[str, ...]
    """Requests that produced one output token."""
    finished: tuple[str, ...]
    """Requests that ended with that token."""
    cached: dict[str, int] = field(default_factory=dict)
    """Tokens found in the prefix cache for each admitted request."""

    @property
    def num_scheduled_tokens(self) -> int:
        """Number of tokens in the whole step."""
        return sum(self.scheduled.values())
