"""A decision, the outcome of its response, and the fields that are stored and shown."""

from __future__ import annotations

from typing import Annotated

import msgspec

from extproc.routing.features import Features
from extproc.routing.policy import Pool, Reason
from extproc.routing.request import MAX_MODEL_CHARS

UNKNOWN_CATEGORY = "unknown"
"""The category of a decision made without reading the text."""


class Decision(msgspec.Struct, frozen=True, gc=False):
    """The pool of a request, and every number behind the choice."""

    pool: Pool
    reason: Reason
    category: str = UNKNOWN_CATEGORY
    model: str = ""
    body_bytes: int = 0
    prompt_tokens: int = 0
    """Point estimate of the prompt tokens; exact if the client sent token ids."""
    bound_tokens: int = 0
    """Upper bound on the prompt tokens at the configured risk."""
    approximate_bound: bool = False
    """Whether ``bound_tokens`` is the usual bound for such prompts instead of this
    prompt's own bound, because every possible bound of this prompt leads to the same
    pool."""
    output_tokens: int = 0
    """Tokens reserved for the output: at most the client's limit, or the allowance if
    the client set no limit."""
    declared: bool = False
    """Whether the client set an output limit."""
    limit_tokens: int | None = None
    """The client's output limit, or None."""
    prompts: int = 1
    """Number of prompts in the request; the estimate is for the longest prompt, the
    usage for all of them."""
    sequences: int = 1
    """Number of completions per prompt; the usage is the sum over all of them."""
    operation: str = "chat"
    """The request's ``gen_ai.operation.name``."""
    usage_not_requested: bool = False
    """Whether the client requested a stream without asking for usage; the stream may
    then report none."""
    conversation: int | None = None
    """Key under which the prompt's count is stored; see ``Conversations``."""
    turn_spread: float = 0.0
    """Spread of the estimate, if the prompt continued a counted prompt."""
    window_tokens: int = 0
    """Smallest ``max_model_len`` that the request requires; 0 for none."""
    retry_cut: bool = False
    """Whether an answer cut off by the pool's window is requested again from the
    largest pool."""
    media_tokens: int = 0
    """Estimated tokens of images, audio, video and files, part of ``prompt_tokens``."""
    media: tuple[float, ...] = ()
    """Sums of ``media.MEDIA_TERMS`` to learn from; empty if nothing is learned from
    media."""
    features: Features | None = None
    """None if nothing is learned from the text, because the decision failed open or
    because of media or token ids."""

    @property
    def base_model(self) -> str:
        """The configured model, ``OTHER_MODEL``, or empty if no model is configured.

        The set of values is closed, whatever names clients send.
        """
        of_pool = self.pool.model
        return OTHER_MODEL if of_pool and self.model == OTHER_MODEL else of_pool

    @property
    def client_limit_tokens(self) -> int | None:
        """The client's output limit; in records without one, the reserved tokens."""
        if self.limit_tokens is None and self.declared:
            return self.output_tokens
        return self.limit_tokens

    @property
    def budget_tokens(self) -> int:
        """Estimated prompt tokens plus output allowance."""
        return self.prompt_tokens + self.output_tokens

    @property
    def bound_budget_tokens(self) -> int:
        """The budget that is compared with the pools' limits."""
        return self.bound_tokens + self.output_tokens


class Outcome(msgspec.Struct, frozen=True, gc=False):
    """The status and usage of a response."""

    status: int
    """HTTP status."""
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    truncated: bool = False
    """Whether the output stopped at a token limit (``finish_reason: length``)."""
    attempts: int = 1
    """Number of upstream attempts; more than one if Envoy retried on a larger pool."""


OTHER_MODEL = "other"
"""The name under which all models that are not configured are learned and counted."""

Count = Annotated[int, msgspec.Meta(ge=0, le=1 << 40)]
_Number = Annotated[int, msgspec.Meta(ge=1, le=1 << 40)]
Name = Annotated[str, msgspec.Meta(max_length=MAX_MODEL_CHARS)]


class DecisionFields(msgspec.Struct, frozen=True, gc=False):
    """The fields of a decision that are stored, sent and shown, without client text.

    Decision tokens, recordings, the status page, spans and the Decide API use these
    fields. The ranges of the fields are checked when they are read from untrusted
    bytes.
    """

    pool: Name
    reason: Reason
    category: Name
    body_bytes: Count
    prompt_tokens: Count
    bound_tokens: Count
    output_tokens: Count
    declared: bool
    prompts: _Number = 1
    sequences: _Number = 1
    operation: Name = "chat"
    window_tokens: Count = 0
    media_tokens: Count = 0
    base_model: Name = ""
    """As ``Decision.base_model``; on reading back, it is taken from the pool."""
    limit_tokens: Count | None = None

    @property
    def budget_tokens(self) -> int:
        """Estimated prompt tokens plus output allowance."""
        return self.prompt_tokens + self.output_tokens

    def decision(
        self,
        pool: Pool,
        *,
        model: str = "",
        usage_not_requested: bool = False,
        features: Features | None = None,
        media: tuple[float, ...] = (),
    ) -> Decision:
        """Return the decision that these fields describe.

        Args:
            pool: the pool named ``self.pool``.
            model: name of the served model.
            usage_not_requested: see ``Decision``.
            features: see ``Decision``.
            media: see ``Decision``.
        """
        return Decision(
            pool=pool,
            reason=self.reason,
            category=self.category,
            model=model,
            body_bytes=self.body_bytes,
            prompt_tokens=self.prompt_tokens,
            bound_tokens=self.bound_tokens,
            output_tokens=self.output_tokens,
            declared=self.declared,
            limit_tokens=self.limit_tokens,
            prompts=self.prompts,
            sequences=self.sequences,
            operation=self.operation,
            window_tokens=self.window_tokens,
            media_tokens=self.media_tokens,
            media=media,
            usage_not_requested=usage_not_requested,
            features=features,
        )


def decision_fields(decision: Decision) -> DecisionFields:
    """Return the fields of a decision that are stored, sent and shown."""
    return DecisionFields(
        pool=decision.pool.name,
        reason=decision.reason,
        category=decision.category,
        body_bytes=decision.body_bytes,
        prompt_tokens=decision.prompt_tokens,
        bound_tokens=decision.bound_tokens,
        output_tokens=decision.output_tokens,
        declared=decision.declared,
        prompts=decision.prompts,
        sequences=decision.sequences,
        operation=decision.operation,
        window_tokens=decision.window_tokens,
        media_tokens=decision.media_tokens,
        base_model=decision.base_model,
        limit_tokens=decision.limit_tokens,
    )
