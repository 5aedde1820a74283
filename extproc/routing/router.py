"""The whole decision for one request, and learning from its response.

Not thread-safe: one event loop calls it, and no function here awaits.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from enum import StrEnum

import msgspec
from msgspec.structs import replace

from extproc.routing.allowance import OutputAllowance
from extproc.routing.bound import Bounded, Turn
from extproc.routing.category import Category, classify
from extproc.routing.conversation import Conversation, Conversations
from extproc.routing.decision import UNKNOWN_CATEGORY, Decision, Outcome
from extproc.routing.declared_allowance import DeclaredAllowance
from extproc.routing.estimate import Estimate
from extproc.routing.features import Features, measure, measure_text
from extproc.routing.media import MediaEstimator, MediaTokens, media_of
from extproc.routing.mergeable import Mergeable
from extproc.routing.misroute import Misroute, find_misroute
from extproc.routing.policy import Policy, Pool, PoolLoad, Reason
from extproc.routing.ratio import TextRatios
from extproc.routing.request import Prompt, Request

__all__ = [
    "UNKNOWN_CATEGORY",
    "Decision",
    "Lesson",
    "MediaTokens",
    "Misroute",
    "Outcome",
    "Router",
    "Skipped",
]

_NOTHING = Estimate(0, 0)


class Skipped(StrEnum):
    """Why nothing was learned from a response. A closed set, used as metric labels."""

    STATUS = "status"
    NO_USAGE = "no_usage"
    FAILED_OPEN = "failed_open"
    NOT_TEXT = "not_text"
    """Token ids, several prompts with one common count, or other parts instead of
    text."""


class Lesson(msgspec.Struct, frozen=True, gc=False):
    """The result of ``learn``: what was learned from a response, or why nothing was."""

    skipped: Skipped | None = None
    error_ratio: float | None = None
    """(estimate - counted) / counted prompt tokens, for the decision's estimate."""
    under_estimated: bool = False
    """Whether the counted prompt exceeded the bound."""
    misroute: Misroute | None = None


class Router:
    """Routes requests among the pools of one model, and learns from their outcomes.

    Args:
        policy: chooses the pool for a budget.
        estimator: estimates prompt tokens.
        ratios: bytes per token by category, for display.
        allowance: output tokens to reserve if the client sets no limit.
        declared_allowance: output tokens to reserve if the client sets a limit.
        conversations: memory of counted prompts; if None, each prompt is estimated on
            its own.
        media_tokens: tokens of parts that are not text.
        hints: categories that a hint may name, in addition to the built-in ones.
        model: the base model under which all requests are learned; if empty, each
            request is learned under the model that it names.
        retry_cut_answers: whether an answer cut off by a smaller pool's window is
            requested again from the largest pool, unless it is streamed.
    """

    def __init__(
        self,
        policy: Policy,
        estimator: Bounded,
        ratios: TextRatios,
        allowance: OutputAllowance | None = None,
        declared_allowance: DeclaredAllowance | None = None,
        conversations: Conversations | None = None,
        *,
        media_tokens: MediaTokens | None = None,
        hints: Collection[str] = (),
        model: str = "",
        retry_cut_answers: bool = False,
    ) -> None:
        self.model = model
        self.policy = policy
        self.estimator = estimator
        self.ratios = ratios
        self.allowance = allowance or OutputAllowance()
        self.declared_allowance = declared_allowance or DeclaredAllowance()
        self.conversations = conversations
        self.media_tokens = media_tokens or MediaTokens()
        self.media = MediaEstimator(self.media_tokens)
        self.hints = frozenset(hints)
        self._retry_cut_answers = retry_cut_answers

    @property
    def routers(self) -> tuple[Router, ...]:
        """The routers of all models: only this one; see ``models.ModelRouter``."""
        return (self,)

    def find(self, name: str, served: Mapping[str, str] | None = None) -> Router:
        """Return the router for a model name: this one, for any name."""
        return self

    def of_pool(self, pool: Pool) -> Router:
        """Return the router of a pool: this one."""
        return self

    def pool(self, name: str) -> Pool | None:
        """Return the pool with a name, or None."""
        return self.policy.pool(name)

    @property
    def categories(self) -> list[str]:
        """Every category that a decision can name."""
        return sorted({*Category, *self.hints, UNKNOWN_CATEGORY})

    @property
    def learners(self) -> list[Mergeable]:
        """Every learner, to be saved and shared."""
        return [self.ratios, *self.estimator.learners, self.media, *self.allowances]

    @property
    def allowances(self) -> list[Mergeable]:
        """The learners of answer lengths."""
        return [self.allowance, self.declared_allowance]

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
            hint: the category from the hint header, or None.
            loads: the known load of each pool.
            approximate: accept the usual bound if the exact bound cannot change the
                pool (see ``Decision.approximate_bound``). The usual bound takes a third
                of the time of the exact bound.
        """
        prompt, model = request.prompt, self.model or request.model
        features = measure(prompt, request.body_bytes)
        category = classify(features, hint, self.hints)
        output_tokens, declared = self._output(request, model, category)
        limit_tokens = request.max_tokens if request.generates else 0
        media = media_of(prompt)
        media_tokens, media_bound = 0, 0
        if media:
            media_estimate = self.media.estimate(model, media)
            media_tokens = media_estimate.tokens
            media_bound = media_estimate.bound_tokens
        counts_apart = (
            not prompt.opaque and not prompt.token_ids and request.prompts == 1
        )
        learnable = counts_apart and not media
        conversation, turn = None, None
        if self.conversations is not None and learnable:
            conversation = self.conversations.find(model, prompt)
            turn = self._continue(model, category, features, prompt, conversation)
        estimate = None
        if turn is not None:
            estimate, approximate = turn.estimate, False
        elif prompt.is_counted:
            estimate, approximate = _NOTHING, False
        elif approximate and learnable and request.prompt_limit is None:
            estimate = self._quick_estimate(model, category, features, output_tokens)
        if estimate is None:
            approximate = False
            estimate = self.estimator.estimate(model, category, features)
        point = estimate.prompt_tokens + prompt.token_ids + media_tokens
        bound = estimate.bound_tokens + prompt.token_ids + media_bound
        window_tokens = 0
        if request.prompt_limit is not None:
            window_tokens = request.prompt_limit
            learnable &= bound <= window_tokens
            counts_apart &= bound <= window_tokens
            point, bound = min(point, window_tokens), min(bound, window_tokens)
        choice = self.policy.choose(bound + output_tokens, loads, window_tokens)
        if request.cut_to_window:
            learnable &= bound <= choice.pool.max_model_len
            counts_apart &= bound <= choice.pool.max_model_len
        return Decision(
            pool=choice.pool,
            reason=choice.reason,
            category=category,
            model=model,
            body_bytes=request.body_bytes,
            prompt_tokens=point,
            bound_tokens=bound,
            approximate_bound=approximate,
            output_tokens=output_tokens,
            declared=declared,
            limit_tokens=limit_tokens,
            prompts=request.prompts,
            sequences=request.sequences,
            operation=request.operation,
            usage_not_requested=request.stream and not request.asks_usage,
            window_tokens=window_tokens,
            retry_cut=self._retry_cut_answers
            and self._may_cut(request, choice.pool, bound),
            conversation=None if conversation is None else conversation.key,
            turn_spread=0.0 if turn is None else turn.spread,
            features=features if learnable else None,
            media=media if counts_apart else (),
            media_tokens=media_tokens,
        )

    def _continue(
        self,
        model: str,
        category: str,
        features: Features,
        prompt: Prompt,
        conversation: Conversation | None,
    ) -> Turn | None:
        """Estimate a prompt from the count of its earlier messages; None if unknown."""
        if conversation is None or not conversation.known_tokens:
            return None
        tokens, end = conversation.known_tokens, conversation.known_bytes
        messages, ends = conversation.known_messages, prompt.message_ends
        if conversation.answer_tokens and messages < len(ends):
            answer = measure_text(prompt.text[end + 1 : ends[messages]], 1)
            counted = self.estimator.count_answer(
                model, category, answer, conversation.answer_tokens
            )
            if counted is not None:
                tokens, end, messages = tokens + counted, ends[messages], messages + 1
        added = None
        if messages < len(ends):
            added = measure_text(prompt.text[end + 1 :], len(ends) - messages)
        return self.estimator.estimate_turn(model, category, features, tokens, added)

    def _quick_estimate(
        self, model: str, category: str, features: Features, output_tokens: int
    ) -> Estimate | None:
        """Estimate with the usual bound; return None if the exact bound may matter."""
        quick = self.estimator.quick_estimate(model, category, features)
        smallest = quick.estimate.prompt_tokens + output_tokens
        largest = quick.largest_bound_tokens + output_tokens
        return None if self.policy.separates(smallest, largest) else quick.estimate

    def with_bound(self, decision: Decision) -> Decision:
        """Return the decision with an exact bound instead of an approximate bound."""
        features = decision.features
        if not decision.approximate_bound or features is None:
            return decision
        estimate = self.estimator.estimate(decision.model, decision.category, features)
        bound = estimate.bound_tokens
        return replace(decision, bound_tokens=bound, approximate_bound=False)

    def _output(self, request: Request, model: str, category: str) -> tuple[int, bool]:
        """Return the output tokens to reserve, and whether the client chose them."""
        if not request.generates:
            return 0, True
        if request.max_tokens is not None:
            return self._under_limit(request, model, category), True
        if request.ignore_eos:
            return self.policy.default.max_model_len, True
        allowed = self.allowance.allow(model, category)
        return max(allowed, request.min_tokens), request.min_tokens > allowed

    def _may_cut(self, request: Request, pool: Pool, bound_tokens: int) -> bool:
        """Return whether a cut answer is to be retried: the window may have cut it."""
        if request.stream or not request.generates:
            return False
        if request.prompts > 1 or request.sequences > 1 or pool == self.policy.default:
            return False
        limit_tokens = request.max_tokens
        return limit_tokens is None or bound_tokens + limit_tokens > pool.max_model_len

    def _under_limit(self, request: Request, model: str, category: str) -> int:
        """Return the output tokens to reserve if the client declares a limit."""
        limit_tokens = max(request.max_tokens or 0, request.min_tokens)
        if request.ignore_eos or request.sequences > 1 or request.prompts > 1:
            return limit_tokens
        reserved = self.declared_allowance.reserve(model, category, limit_tokens)
        return max(reserved, request.min_tokens)

    def fail_open(
        self,
        reason: Reason,
        body_bytes: int = 0,
        loads: Mapping[str, PoolLoad] | None = None,
    ) -> Decision:
        """Choose a pool without an estimate: the default pool unless it is down."""
        pool = self.policy.fallback(loads)
        return Decision(pool, reason, model=self.model, body_bytes=body_bytes)

    def learn(self, decision: Decision, outcome: Outcome) -> Lesson:
        """Learn from one response; return what was learned, or why nothing was.

        Nothing is learned from a decision that failed open, a status other than 200,
        missing or zero usage, token ids (whose count is known), or several prompts
        whose usage is one sum. A prompt with media updates the estimate of media
        tokens, not that of text.
        """
        counted, model = outcome.prompt_tokens, self.model or decision.model
        if decision.reason.failed_open:
            return Lesson(Skipped.FAILED_OPEN)
        if outcome.status != 200:
            return Lesson(Skipped.STATUS)
        if not counted or counted < 0:
            return Lesson(Skipped.NO_USAGE)
        if decision.prompts == decision.sequences == 1:
            self._learn_length(model, decision, outcome, counted)
        misroute = find_misroute(self.policy, decision, outcome)
        if decision.media:
            text_tokens = decision.prompt_tokens - decision.media_tokens
            tokens = counted - text_tokens
            self.media.observe(model, decision.media, tokens, text_tokens)
        elif decision.features is not None:
            answered = outcome.completion_tokens or 0
            self._learn_text(model, decision, decision.features, counted, answered)
        else:
            return Lesson(Skipped.NOT_TEXT, misroute=misroute)
        return Lesson(
            error_ratio=(decision.prompt_tokens - counted) / counted,
            under_estimated=counted > decision.bound_tokens,
            misroute=misroute,
        )

    def _learn_text(
        self,
        model: str,
        decision: Decision,
        features: Features,
        counted: int,
        completion_tokens: int,
    ) -> None:
        if self.conversations is not None and decision.conversation is not None:
            answer = completion_tokens if decision.sequences == 1 else 0
            self.conversations.remember(decision.conversation, counted, answer)
        self.ratios.observe(decision.category, features, counted)
        turn = None
        if decision.turn_spread:
            made = Estimate(decision.prompt_tokens, decision.bound_tokens)
            turn = Turn(made, decision.turn_spread)
        self.estimator.observe(model, decision.category, features, counted, turn)

    def _learn_length(
        self, model: str, decision: Decision, outcome: Outcome, prompt_tokens: int
    ) -> None:
        completion_tokens = outcome.completion_tokens or 0
        limit_tokens = decision.limit_tokens
        if not decision.declared:
            self.allowance.observe(
                model, decision.category, completion_tokens, outcome.truncated
            )
            return
        if not limit_tokens:
            return
        self.declared_allowance.observe(
            model,
            decision.category,
            limit_tokens,
            completion_tokens,
            truncated=outcome.truncated,
            reserved_tokens=decision.output_tokens,
        )
        relied = decision.output_tokens < limit_tokens
        window_tokens = decision.pool.max_model_len
        if relied and prompt_tokens + limit_tokens > window_tokens:
            # If the answer is long enough to fill the window, the first attempt was cut
            # off and retried, not refused.
            filled = prompt_tokens + completion_tokens >= window_tokens
            refused = outcome.attempts > 1 and not filled
            self.declared_allowance.relied(model, refused=refused)
