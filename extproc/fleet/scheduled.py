"""A request of the scheduler, and the record of one step."""

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
    """One request of the scheduler."""

    request_id: str
    """Identifier, unique among unfinished requests."""
    prompt_tokens: int
    """Number of tokens of the prompt (> 0)."""
    output_tokens: int
    """Number of output tokens at which the request ends (> 0): ``max_tokens`` or the
    length that the model chooses, whichever is smaller."""
    max_tokens: int
    """The limit on output tokens, known in advance (>= ``output_tokens``)."""
    block_hashes: Sequence[Hashable] = ()
    """Hashes of the full blocks of prompt and answer. Each hash covers the block's
    tokens and all earlier tokens. Blocks past the end of the list are private."""
    reported_tokens: int = 0
    """Number of tokens computed elsewhere, which need no step. They fill whole, private
    blocks before the last token of the prompt."""
    num_output_tokens: int = 0
    """Number of output tokens so far, which a preemption keeps."""
    num_computed_tokens: int = 0
    """Number of tokens whose keys and values are in the cache now, or will be after the
    scheduled steps."""
    num_output_placeholders: int = 0
    """Number of output tokens that are scheduled but not yet known."""
    num_hashed_blocks: int = 0
    """Number of the request's blocks that are in the prefix cache."""
    num_preemptions: int = 0
    """Number of preemptions of the request."""
    status: Status = Status.WAITING
    blocks: list[Block] = field(default_factory=list)

    @property
    def num_tokens(self) -> int:
        """Number of known tokens: the prompt and the output so far."""
        return self.prompt_tokens + self.num_output_tokens

    @property
    def num_blocks(self) -> int:
        """Number of KV blocks of the request."""
        return len(self.blocks)

    @property
    def is_complete(self) -> bool:
        """Whether the tokens in flight will certainly reach ``max_tokens``."""
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

    With asynchronous scheduling, ``sampled`` and ``finished`` belong to the previous
    step.
    """

    scheduled: dict[str, int]
    """Number of tokens computed for each request, in the order of scheduling."""
    context_tokens: int
    """Number of cached tokens that attention reads in the step: those that the
    scheduled requests have before it."""
    preempted: tuple[str, ...]
    """Requests evicted before the step ran."""
    sampled: tuple[str, ...]
    """Requests that produced one output token."""
    finished: tuple[str, ...]
    """Requests that ended with this token."""
    cached: dict[str, int] = field(default_factory=dict)
    """Number of tokens found in the prefix cache for each admitted request."""

    @property
    def num_scheduled_tokens(self) -> int:
        """Number of tokens in the whole step."""
        return sum(self.scheduled.values())
