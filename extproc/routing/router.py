"""The whole decision for one request, and what its response teaches.

Not thread-safe: one event loop calls it, and nothing here awaits.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from enum import StrEnum

import msgspec
from msgspec.structs import replace

from extproc.routing.allowance import OutputAllowance
from extproc.routing.bound import Bounded
from extproc.routing.category import Category, classify
from extproc.routing.estimate import Estimate
from extproc.routing.features import Features, measure
from extproc.routing.mergeable import Mergeable
from extproc.routing.policy import Policy, Pool, PoolLoad, Reason
from extproc.routing.ratio import TextRatios
from extproc.routing.request import Prompt, Request

_NOTHING = Estimate(0, 0)

UNKNOWN_CATEGORY = "unknown"
"""The category of a decision that was made without reading the text."""


@dataclass(frozen=True, slots=True)
class MediaTokens:
    """Prompt tokens charged for each part that is not text.

    An OpenAI image costs 64 to 765 tokens, a vLLM vision model's 256 to 1,500 by
    size; audio takes about 25 tokens a second; a file is taken as a page of text.
    """

    image: int = 1024
    audio: int = 1500
    file: int = 2048

    def of(self, prompt: Prompt) -> int:
        """Tokens of a prompt's media parts."""
        return (
            prompt.images * self.image
            + prompt.audios * self.audio
            + prompt.files * self.file
        )


class Decision(msgspec.Struct, frozen=True, gc=False):
    """Where a request goes, and every number of why."""

    pool: Pool
    reason: Reason
    category: str = UNKNOWN_CATEGORY
    model: str = ""
    body_bytes: int = 0
    prompt_tokens: int = 0
    """Point estimate; exact for token ids."""
    bound_tokens: int = 0
    """Upper bound on the prompt tokens at the configured risk."""
    approximate_bound: bool = False
    """Whether that is the bound of such prompts, not of this one: every bound that it
    could have leads to the same pool."""
    output_tokens: int = 0
    """The client's limit, or what is allowed for where it set none."""
    declared: bool = False
    """Whether the client set the output limit."""
    prompts: int = 1
    """Prompts in the request; the numbers are of the longest, the usage of all."""
    sequences: int = 1
    """Completions of each prompt; the usage sums them up."""
    usage_not_requested: bool = False
    """A stream whose client asked for no usage: there may be none to learn from."""
    features: Features | None = None
    """None where there is nothing to learn from: failed open, media, token ids."""

    @property
    def budget_tokens(self) -> int:
        """Estimated prompt tokens plus output allowance."""
        return self.prompt_tokens + self.output_tokens

    @property
    def bound_budget_tokens(self) -> int:
        """What was held against the pools' limits."""
        return self.bound_tokens + self.output_tokens


class Outcome(msgspec.Struct, frozen=True, gc=False):
    """What a response said."""

    status: int
    """HTTP status."""
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    truncated: bool = False
    """``finish_reason: length`` or its like."""
    attempts: int = 1
    """Upstream attempts; more than one where Envoy retried on a larger pool."""


class Misroute(StrEnum):
    """How a decision was wrong, judged once the usage is known."""

    SHORT_OVERFLOW = "short_overflow"
    """Needed more tokens than its pool's limit: should have gone to a larger one."""
    LONG_WASTE = "long_waste"
    """Would have fitted a smaller pool, threshold and all."""
    TRUNCATED = "truncated"
    """The pool's window cut the output off before the client's own limit did."""


class Skipped(StrEnum):
    """Why a response taught nothing. Closed: these are metric labels."""

    STATUS = "status"
    NO_USAGE = "no_usage"
    FAILED_OPEN = "failed_open"
    NOT_TEXT = "not_text"
    """Media, token ids, or several prompts counted as one."""


class Lesson(msgspec.Struct, frozen=True, gc=False):
    """What became of an outcome: learned from, or why not."""

    skipped: Skipped | None = None
    error_ratio: float | None = None
    """(estimate - counted) / counted prompt tokens, of the estimate made."""
    under_estimated: bool = False
    """Whether the counted prompt exceeded the bound."""
    misroute: Misroute | None = None


class Router:
    """Routes requests, and learns from their outcomes."""

    def __init__(
        self,
        policy: Policy,
        estimator: Bounded,
        ratios: TextRatios,
        allowance: OutputAllowance | None = None,
        *,
        media_tokens: MediaTokens | None = None,
        hints: Collection[str] = (),
    ) -> None:
        self.policy = policy
        self.estimator = estimator
        self.ratios = ratios
        self.allowance = allowance or OutputAllowance()
        self.media_tokens = media_tokens or MediaTokens()
        self.hints = frozenset(hints)

    @property
    def categories(self) -> list[str]:
        """Every category that a decision can name."""
        return sorted({*Category, *self.hints, UNKNOWN_CATEGORY})

    @property
    def learners(self) -> list[Mergeable]:
        """Everything that learns, to be kept and shared."""
        return [self.ratios, *self.estimator.learners, self.allowance]

    def route(
        self,
        request: Request,
        hint: str | None = None,
        loads: Mapping[str, PoolLoad] | None = None,
        *,
        approximate: bool = False,
    ) -> Decision:
        """Decide the pool of a request.

        Args:
            request: parsed from the body.
            hint: the category that the hint header named, if any.
            loads: what is known of the pools' load.
            approximate: accept the usual bound if the exact one decides nothing (see
                ``Decision.approximate_bound``); it takes a third of the time.
        """
        prompt = request.prompt
        features = measure(prompt, request.body_bytes)
        category = classify(features, hint, self.hints)
        output_tokens = self._output_tokens(request, category)
        constant = prompt.token_ids + self.media_tokens.of(prompt)
        learnable = (
            not prompt.has_media and not prompt.token_ids and request.prompts == 1
        )
        estimate = None
        if prompt.token_ids and not prompt.text:
            estimate, approximate = _NOTHING, False
        elif approximate and learnable:
            estimate = self._quick_estimate(
                request.model, category, features, output_tokens
            )
        if estimate is None:
            approximate = False
            estimate = self.estimator.estimate(request.model, category, features)
        bound = estimate.bound_tokens + constant
        choice = self.policy.choose(bound + output_tokens, loads)
        return Decision(
            pool=choice.pool,
            reason=choice.reason,
            category=category,
            model=request.model,
            body_bytes=request.body_bytes,
            prompt_tokens=estimate.prompt_tokens + constant,
            bound_tokens=bound,
            approximate_bound=approximate,
            output_tokens=output_tokens,
            declared=request.max_tokens is not None or not request.generates,
            prompts=request.prompts,
            sequences=request.sequences,
            usage_not_requested=request.stream and not request.asks_usage,
            features=features if learnable else None,
        )

    def _quick_estimate(
        self, model: str, category: str, features: Features, output_tokens: int
    ) -> Estimate | None:
        """Estimate without a bound of its own, unless that could change the pool."""
        quick = self.estimator.quick_estimate(model, category, features)
        smallest = quick.estimate.prompt_tokens + output_tokens
        largest = quick.largest_bound_tokens + output_tokens
        return None if self.policy.separates(smallest, largest) else quick.estimate

    def with_bound(self, decision: Decision) -> Decision:
        """Return the decision with a bound of its own where it has a rough one."""
        features = decision.features
        if not decision.approximate_bound or features is None:
            return decision
        estimate = self.estimator.estimate(decision.model, decision.category, features)
        bound = estimate.bound_tokens
        return replace(decision, bound_tokens=bound, approximate_bound=False)

    def _output_tokens(self, request: Request, category: str) -> int:
        if not request.generates:
            return 0
        if request.max_tokens is not None:
            return request.max_tokens
        return self.allowance.allow(request.model, category)

    def fail_open(
        self,
        reason: Reason,
        body_bytes: int = 0,
        loads: Mapping[str, PoolLoad] | None = None,
    ) -> Decision:
        """Decide without an estimate: the default pool unless it is down; no lesson."""
        return Decision(self.policy.fallback(loads), reason, body_bytes=body_bytes)

    def learn(self, decision: Decision, outcome: Outcome) -> Lesson:
        """Learn from one response; say what was learned, or why nothing was.

        Never learned from: a decision that failed open, a status other than 200,
        missing or zero usage, media, token ids (there is nothing to learn), several
        prompts whose usage is one sum.
        """
        counted = outcome.prompt_tokens
        if decision.reason.failed_open:
            return Lesson(Skipped.FAILED_OPEN)
        if outcome.status != 200:
            return Lesson(Skipped.STATUS)
        if not counted or counted < 0:
            return Lesson(Skipped.NO_USAGE)
        if not decision.declared and decision.prompts == decision.sequences == 1:
            self.allowance.observe(
                decision.model,
                decision.category,
                outcome.completion_tokens or 0,
                outcome.truncated,
            )
        misroute = self._misroute(decision, counted, outcome)
        if decision.features is None:
            return Lesson(Skipped.NOT_TEXT, misroute=misroute)
        self.ratios.observe(decision.category, decision.features, counted)
        self.estimator.observe(
            decision.model, decision.category, decision.features, counted
        )
        return Lesson(
            error_ratio=(decision.prompt_tokens - counted) / counted,
            under_estimated=counted > decision.bound_tokens,
            misroute=misroute,
        )

    def _misroute(
        self, decision: Decision, counted: int, outcome: Outcome
    ) -> Misroute | None:
        if decision.prompts > 1:
            return None  # a sum over prompts says nothing of the longest
        chosen = decision.pool
        completion = outcome.completion_tokens
        if completion is not None:
            completion = -(-completion // decision.sequences)
        retried = outcome.attempts > 1 and counted >= chosen.max_model_len
        if retried or counted > chosen.max_model_len:
            return Misroute.SHORT_OVERFLOW
        output = decision.output_tokens if decision.declared else completion or 0
        if outcome.truncated and completion is not None and chosen is not self._largest:
            # vLLM lowers max_tokens to what the window leaves rather than refuse.
            filled = counted + completion >= chosen.max_model_len
            if filled and not (decision.declared and completion >= output):
                return Misroute.TRUNCATED
        if completion is None and not decision.declared:
            return None
        needed = self.policy.choose(counted + output).pool
        if needed.max_model_len > chosen.max_model_len:
            return Misroute.SHORT_OVERFLOW
        if needed.max_model_len < chosen.max_model_len:
            return None if decision.reason is Reason.SPILLED else Misroute.LONG_WASTE
        return None

    @property
    def _largest(self) -> Pool:
        return self.policy.default
