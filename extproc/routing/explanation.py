"""Every number of one decision, as documents for people and for JSON.

The numbers are those that routing used: the decision comes from ``Router.route``
itself, and the rest from the same objects. No text of the request is in them, except
the model's name and the hint, which come from the caller.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from msgspec import UNSET, Struct, UnsetType

from extproc.routing.byte_classes import ByteClass
from extproc.routing.category import accepts_hint, classify
from extproc.routing.features import Features, measure
from extproc.routing.policy import IDLE, Policy, PoolLoad, Reason
from extproc.routing.request import Request
from extproc.routing.router import Decision, Router


class RequestSize(Struct, frozen=True):
    """What is known of a request that was not read."""

    body_bytes: int


class RequestExplanation(Struct, frozen=True):
    """What was read of a request."""

    model: str
    body_bytes: int
    text_bytes: int
    tools_bytes: int
    messages: int
    tools: int
    images: int
    audios: int
    files: int
    token_ids: int
    prompts: int
    sequences: int
    stream: bool


class CategoryExplanation(Struct, frozen=True):
    """A request's category and its source: hint, tools, text or nothing to read."""

    name: str
    source: str
    of_text: str
    hint: str | None
    hint_accepted: bool


class PromptExplanation(Struct, frozen=True):
    """A prompt's estimate."""

    estimator: str | None
    """None if the client counted the prompt: token ids."""
    token_ids: int
    media_tokens: int
    tokens: int
    bound_tokens: int
    learned_from: bool
    """Whether the response teaches the estimator."""
    made_of: Mapping[str, object] | UnsetType = UNSET
    """The estimator's own numbers, by name; see ``Estimator.explain``."""


class OutputExplanation(Struct, frozen=True):
    """The tokens reserved for the output, and the client's limit if it declared one."""

    tokens: int
    declared: bool
    limit_tokens: int | None = None


class BudgetExplanation(Struct, frozen=True):
    """Prompt plus output; the bound is held against the limits of the pools."""

    tokens: int
    bound_tokens: int


class PoolExplanation(Struct, frozen=True):
    """A pool as the decision found it."""

    name: str
    threshold_tokens: int
    max_model_len: int
    available: bool
    under_pressure: bool
    chosen: bool


class Comparison(Struct, frozen=True):
    """The one comparison whose other result would have led to another pool."""

    pool: str
    limit: str
    """``threshold_tokens``, ``max_model_len``, or ``load`` without a number."""
    limit_tokens: int | UnsetType = UNSET
    budget_tokens: int | UnsetType = UNSET
    within: bool | UnsetType = UNSET


class DecisionExplanation(Struct, frozen=True):
    """The pool chosen, and why."""

    pool: str
    reason: str
    decided_by: Comparison | None


class Explanation(Struct, frozen=True, kw_only=True):
    """Every number of a decision."""

    request: RequestExplanation
    byte_classes: Mapping[str, int]
    """Bytes of text in each class that occurs, the most frequent first."""
    category: CategoryExplanation
    prompt: PromptExplanation
    output: OutputExplanation
    budget: BudgetExplanation
    pools: Sequence[PoolExplanation]
    decision: DecisionExplanation
    path: str | UnsetType = UNSET
    routed: bool | UnsetType = UNSET
    """Whether requests to ``path`` are routed."""
    model: str | UnsetType = UNSET
    """The base model, if models are configured."""


class FailedOpenExplanation(Struct, frozen=True, kw_only=True):
    """A decision that was made without an estimate."""

    request: RequestSize
    why: str
    """The reason in words: the field that no request can have, or an empty text."""
    pools: Sequence[PoolExplanation]
    decision: DecisionExplanation
    path: str | UnsetType = UNSET
    routed: bool | UnsetType = UNSET
    model: str | UnsetType = UNSET
    """The base model, if models are configured."""


class NotRoutedExplanation(Struct, frozen=True, kw_only=True):
    """A request that is left on the route that it has."""

    request: RequestSize
    not_routed: str
    """The reason, as in ``extproc_not_routed_total``."""
    asked: str
    """The model that the request asks for; empty if it was not read."""
    models: Sequence[str]
    """The models that are configured."""
    path: str | UnsetType = UNSET
    routed: bool | UnsetType = UNSET


def explain(
    router: Router,
    request: Request,
    hint: str | None = None,
    loads: Mapping[str, PoolLoad] | None = None,
) -> Explanation:
    """Decide as ``Router.route`` does, and return every number of it.

    Args:
        router: its estimator is read, not taught.
        request: parsed from the body.
        hint: the category that the hint header named, if any.
        loads: what is known of the pools' load.
    """
    decision = router.route(request, hint, loads)
    features = measure(request.prompt, request.body_bytes)
    return Explanation(
        request=_explain_request(request, features),
        byte_classes=_count_classes(features),
        category=_explain_category(features, hint, router.hints),
        prompt=_explain_prompt(router, request, decision, features),
        output=OutputExplanation(
            decision.output_tokens, decision.declared, decision.limit_tokens
        ),
        budget=BudgetExplanation(decision.budget_tokens, decision.bound_budget_tokens),
        pools=_explain_pools(router.policy, decision, loads or {}),
        decision=_explain_decision(router.policy, decision),
        model=router.model or UNSET,
    )


def explain_failure(
    router: Router, decision: Decision, why: str = ""
) -> FailedOpenExplanation:
    """Explain a decision that was made without an estimate.

    Args:
        decision: of a reason that failed open.
        why: the reason in words, of which none is a client's.
    """
    return FailedOpenExplanation(
        request=RequestSize(decision.body_bytes),
        why=why,
        pools=_explain_pools(router.policy, decision, {}),
        decision=_explain_decision(router.policy, decision),
        model=router.model or UNSET,
    )


def _explain_request(request: Request, features: Features) -> RequestExplanation:
    prompt = request.prompt
    return RequestExplanation(
        model=request.model,
        body_bytes=request.body_bytes,
        text_bytes=features.text_bytes,
        tools_bytes=features.tools_bytes,
        messages=prompt.messages,
        tools=prompt.tools,
        images=prompt.images,
        audios=prompt.audios,
        files=prompt.files,
        token_ids=prompt.token_ids,
        prompts=request.prompts,
        sequences=request.sequences,
        stream=request.stream,
    )


def _count_classes(features: Features) -> dict[str, int]:
    counts = features.classes
    named: dict[str, int] = {}
    for byte_class in ByteClass:
        name = byte_class.name.lower()
        # Small letters, and bytes after the first of a character, are one class here.
        name = name.partition("_")[0] if name[:5] in ("lower", "trail") else name
        named[name] = named.get(name, 0) + counts[byte_class]
    present = {name: count for name, count in named.items() if count}
    return dict(sorted(present.items(), key=lambda item: -item[1]))


def _explain_category(
    features: Features, hint: str | None, hints: Collection[str]
) -> CategoryExplanation:
    accepted = accepts_hint(hint, hints)
    if accepted:
        source = "hint"
    elif features.tools_bytes > features.text_bytes:
        source = "tools"
    else:
        source = "text" if features.text_bytes else "nothing to read"
    return CategoryExplanation(
        name=str(classify(features, hint, hints)),
        source=source,
        of_text=str(classify(features)),
        hint=hint,
        hint_accepted=accepted,
    )


def _explain_prompt(
    router: Router, request: Request, decision: Decision, features: Features
) -> PromptExplanation:
    estimator, exact = router.estimator, request.prompt.is_counted
    return PromptExplanation(
        estimator=None if exact else estimator.name,
        token_ids=request.prompt.token_ids,
        media_tokens=decision.media_tokens,
        tokens=decision.prompt_tokens,
        bound_tokens=decision.bound_tokens,
        learned_from=decision.features is not None or bool(decision.media),
        made_of=UNSET
        if exact
        else estimator.explain(decision.model, decision.category, features),
    )


def _explain_pools(
    policy: Policy, decision: Decision, loads: Mapping[str, PoolLoad]
) -> list[PoolExplanation]:
    return [
        PoolExplanation(
            name=pool.name,
            threshold_tokens=pool.threshold_tokens,
            max_model_len=pool.max_model_len,
            available=loads.get(pool.name, IDLE).available,
            under_pressure=loads.get(pool.name, IDLE).under_pressure,
            chosen=pool.name == decision.pool.name,
        )
        for pool in policy.pools
    ]


def _explain_decision(policy: Policy, decision: Decision) -> DecisionExplanation:
    compared = _compare(policy, decision)
    return DecisionExplanation(decision.pool.name, str(decision.reason), compared)


def _compare(policy: Policy, decision: Decision) -> Comparison | None:
    if len(policy.pools) == 1:
        return None
    budget_tokens = decision.bound_budget_tokens
    match decision.reason:
        case Reason.WITHIN_THRESHOLD:
            pool, limit = decision.pool, "threshold_tokens"
        case Reason.OVER_THRESHOLD:
            pool, limit = policy.pools[-2], "threshold_tokens"
        case Reason.OVER_CAPACITY:
            pool, limit = policy.pools[-2], "max_model_len"
        case Reason.SPILLED:
            return Comparison(policy.choose(budget_tokens).pool.name, "load")
        case _:
            return None
    limit_tokens: int = getattr(pool, limit)
    within = budget_tokens <= limit_tokens
    return Comparison(pool.name, limit, limit_tokens, budget_tokens, within)
