"""Every number of one decision, as documents for people and for JSON.

The numbers are those that routing used: the decision is made by ``Router.route``
itself, and the other numbers come from the same objects. The documents contain no text
of the request except the model's name and the hint, which come from the caller.
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
    """The known facts about a request that was not read."""

    body_bytes: int


class RequestExplanation(Struct, frozen=True):
    """The features of a request that was read."""

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
    """A request's category, and whether hint, tools, text or nothing determined it."""

    name: str
    source: str
    of_text: str
    hint: str | None
    hint_accepted: bool


class PromptExplanation(Struct, frozen=True):
    """The estimate for a prompt."""

    estimator: str | None
    """None if the client sent token ids, so the count is exact."""
    token_ids: int
    media_tokens: int
    tokens: int
    bound_tokens: int
    learned_from: bool
    """Whether the estimator learns from the response."""
    made_of: Mapping[str, object] | UnsetType = UNSET
    """The estimator's own numbers, by name; see ``Estimator.explain``."""


class OutputExplanation(Struct, frozen=True):
    """The tokens reserved for the output, and the client's limit if it declared one."""

    tokens: int
    declared: bool
    limit_tokens: int | None = None


class BudgetExplanation(Struct, frozen=True):
    """Prompt plus output tokens; the bound is compared with the pools' limits."""

    tokens: int
    bound_tokens: int


class PoolExplanation(Struct, frozen=True):
    """A pool at the time of the decision."""

    name: str
    threshold_tokens: int
    max_model_len: int
    available: bool
    under_pressure: bool
    chosen: bool


class Comparison(Struct, frozen=True):
    """The only comparison whose opposite result would change the pool."""

    pool: str
    limit: str
    """``threshold_tokens``, ``max_model_len``, or ``load``, which has no number."""
    limit_tokens: int | UnsetType = UNSET
    budget_tokens: int | UnsetType = UNSET
    within: bool | UnsetType = UNSET


class DecisionExplanation(Struct, frozen=True):
    """The chosen pool and the reason."""

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
    """Whether requests to this ``path`` are routed."""
    model: str | UnsetType = UNSET
    """The base model, if models are configured."""


class FailedOpenExplanation(Struct, frozen=True, kw_only=True):
    """A decision made without an estimate."""

    request: RequestSize
    why: str
    """The reason in words: the invalid field of the request, or an empty text."""
    pools: Sequence[PoolExplanation]
    decision: DecisionExplanation
    path: str | UnsetType = UNSET
    routed: bool | UnsetType = UNSET
    model: str | UnsetType = UNSET
    """The base model, if models are configured."""


class NotRoutedExplanation(Struct, frozen=True, kw_only=True):
    """A request that stays on its original route."""

    request: RequestSize
    not_routed: str
    """The reason, as in ``extproc_not_routed_total``."""
    asked: str
    """The model that the request names; empty if it was not read."""
    models: Sequence[str]
    """The configured models."""
    path: str | UnsetType = UNSET
    routed: bool | UnsetType = UNSET


def explain(
    router: Router,
    request: Request,
    hint: str | None = None,
    loads: Mapping[str, PoolLoad] | None = None,
) -> Explanation:
    """Decide like ``Router.route``, and return every number of the decision.

    Args:
        router: its estimator is used but learns nothing.
        request: parsed from the body.
        hint: the category from the hint header, or None.
        loads: the known load of each pool.
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
    """Explain a decision made without an estimate.

    Args:
        decision: a decision that failed open.
        why: the reason in words, without client text.
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
        # Lowercase letters are one class here, and so are continuation bytes.
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
