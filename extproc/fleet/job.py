"""One request in an instance, as :class:`extproc.fleet.instance.Instance` sees it."""

import math
from dataclasses import dataclass

from extproc.fleet.prefix_cache import Holding, Prefix


@dataclass(slots=True, eq=False)
class Job:
    """One request in an instance.

    Attributes:
        arrival_s: when it reached the instance.
        prompt_tokens, output_tokens: both at least 1; together at most
            ``max_model_len``.
        tag: whatever the caller wants to find again.
        prefix: what its tokens have in common with others'; None for nothing.
        is_open_ended: whether it ends by an end-of-sequence token, which a scheduler
            that is a step ahead does not foresee, rather than at its ``max_tokens``.
        first_step_s: start of the first step that computed a token of it; NaN before.
        first_token_s: end of the step that produced its first output token.
        finish_s: end of the step that produced its last one.
        cached_tokens: of the prompt, found in the prefix cache when it was admitted.
    """

    arrival_s: float
    prompt_tokens: int
    output_tokens: int
    tag: object = None
    prefix: Prefix | None = None
    is_open_ended: bool = False
    first_step_s: float = math.nan
    first_token_s: float = math.nan
    finish_s: float = math.nan
    cached_tokens: int = 0
    num_preemptions: int = 0
    # Known tokens (prompt and output so far) and computed ones, while not decoding.
    known: int = 0
    computed: int = 0
    # While decoding, computed tokens are the instance's step count plus this.
    offset: int = 0
    # Entries of the finish heap that carry another value are stale.
    admission: int = 0
    # Computed tokens that it is admitted with, as its usage reports them.
    reported: int = 0
    # Its part in the prefix cache, if it may find something there.
    holding: Holding | None = None

    @property
    def tokens(self) -> int:
        """Prompt and answer."""
        return self.prompt_tokens + self.output_tokens
