"""One request in an :class:`extproc.fleet.instance.Instance`."""

import math
from dataclasses import dataclass

from extproc.fleet.prefix_cache import Holding, Prefix


@dataclass(slots=True, eq=False)
class Job:
    """One request in an instance.

    Attributes:
        arrival_s: time of arrival at the instance.
        prompt_tokens, output_tokens: at least 1 each, and at most ``max_model_len``
            together.
        tag: any value that identifies the request for the caller.
        prefix: tokens shared with other requests, or None.
        is_open_ended: whether the request ends by an end-of-sequence token instead of
            at its ``max_tokens``. A scheduler that is one step ahead does not foresee
            such a token.
        first_step_s: start of the first step that computed one of its tokens, or NaN.
        first_token_s: end of the step that produced its first output token.
        finish_s: end of the step that produced its last output token.
        cached_tokens: prompt tokens found in the prefix cache at admission.
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
    # Numbers of known tokens (prompt and output so far) and of computed tokens, while
    # the job is not decoding.
    known: int = 0
    computed: int = 0
    # While the job is decoding, the number of computed tokens is the step count plus
    # this value.
    offset: int = 0
    # In the heap of ends, an entry whose admission number differs from this one is
    # stale.
    admission: int = 0
    # Number of tokens already computed at admission, as the request's usage reported
    # it.
    reported: int = 0
    # The job's blocks in the prefix cache, if it can share any.
    holding: Holding | None = None

    @property
    def tokens(self) -> int:
        """Number of prompt and output tokens."""
        return self.prompt_tokens + self.output_tokens
