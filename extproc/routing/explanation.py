"""Every number of one decision, as plain values for people and for JSON.

What is told is what routing used: the decision comes from ``Router.route`` itself, and
the numbers around it from the same objects. No text of the request is in it, except
the model's name and the hint, which whoever asks has just sent.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from extproc.routing.category import accepts_hint, classify
from extproc.routing.features import ByteClass, Features, measure
from extproc.routing.policy import IDLE, Policy, PoolLoad, Reason
from extproc.routing.request import Request
from extproc.routing.router import Decision, Router


def explain(
    router: Router,
    request: Request,
    hint: str | None = None,
    loads: Mapping[str, PoolLoad] | None = None,
) -> dict[str, Any]:
    """Decide as ``Router.route`` does, and tell every number of it.

    Args:
        router: its estimator is read, not taught.
        request: parsed from the body.
        hint: the category that the hint header named, if any.
        loads: what is known of the pools' load.
    """
    decision = router.route(request, hint, loads)
    features = measure(request.prompt, request.body_bytes)
    return {
        "request": _describe_request(request, features),
        "byte_classes": _count_classes(features),
        "category": _explain_category(features, hint, router.hints),
        "prompt": _explain_prompt(router, request, decision, features),
        "output": {
            "tokens": decision.output_tokens,
            "declared": decision.declared,
        },
        "budget": {
            "tokens": decision.budget_tokens,
            "bound_tokens": decision.bound_budget_tokens,
        },
        **_explain_choice(router.policy, decision, loads or {}),
    }


def explain_failure(router: Router, reason: Reason, body_bytes: int) -> dict[str, Any]:
    """Tell a decision that was made without reading the request.

    Args:
        reason: one that failed open.
        body_bytes: size of the body as it came.
    """
    decision = router.fail_open(reason, body_bytes)
    return {
        "request": {"body_bytes": body_bytes},
        **_explain_choice(router.policy, decision, {}),
    }


def _describe_request(request: Request, features: Features) -> dict[str, Any]:
    prompt = request.prompt
    return {
        "model": request.model,
        "body_bytes": request.body_bytes,
        "text_bytes": features.text_bytes,
        "tools_bytes": features.tools_bytes,
        "messages": prompt.messages,
        "tools": prompt.tools,
        "images": prompt.images,
        "audios": prompt.audios,
        "files": prompt.files,
        "token_ids": prompt.token_ids,
        "prompts": request.prompts,
        "sequences": request.sequences,
        "stream": request.stream,
    }


def _count_classes(features: Features) -> dict[str, int]:
    """Bytes of text in each class that occurs, the most frequent first."""
    counts = features.classes()
    named = {cls.name.lower(): int(counts[cls]) for cls in ByteClass if counts[cls]}
    return dict(sorted(named.items(), key=lambda item: -item[1]))


def _explain_category(
    features: Features, hint: str | None, hints: Collection[str]
) -> dict[str, Any]:
    accepted = accepts_hint(hint, hints)
    of_text = classify(features)
    if accepted:
        source = "hint"
    elif features.tools_bytes > features.text_bytes:
        source = "tools"
    else:
        source = "text" if features.text_bytes else "nothing to read"
    return {
        "name": str(classify(features, hint, hints)),
        "source": source,
        "of_text": str(of_text),
        "hint": hint,
        "hint_accepted": accepted,
    }


def _explain_prompt(
    router: Router, request: Request, decision: Decision, features: Features
) -> dict[str, Any]:
    exact = bool(request.prompt.token_ids) and not request.prompt.text
    told: dict[str, Any] = {"estimator": None if exact else router.estimator.name}
    if not exact:
        told["made_of"] = router.estimator.explain(
            request.model, decision.category, features
        )
    return {
        **told,
        "token_ids": request.prompt.token_ids,
        "media_tokens": router.media_tokens.of(request.prompt),
        "tokens": decision.prompt_tokens,
        "bound_tokens": decision.bound_tokens,
        "learned_from": decision.features is not None,
    }


def _explain_choice(
    policy: Policy, decision: Decision, loads: Mapping[str, PoolLoad]
) -> dict[str, Any]:
    return {
        "pools": [
            {
                "name": pool.name,
                "threshold_tokens": pool.threshold_tokens,
                "max_model_len": pool.max_model_len,
                "available": loads.get(pool.name, IDLE).available,
                "under_pressure": loads.get(pool.name, IDLE).under_pressure,
                "chosen": pool.name == decision.pool.name,
            }
            for pool in policy.pools
        ],
        "decision": {
            "pool": decision.pool.name,
            "reason": str(decision.reason),
            "decided_by": _decided_by(policy, decision),
        },
    }


def _decided_by(policy: Policy, decision: Decision) -> dict[str, Any] | None:
    """The one comparison that would have to turn out otherwise for another pool."""
    if len(policy.pools) == 1:
        return None
    match decision.reason:
        case Reason.WITHIN_THRESHOLD:
            pool, limit = decision.pool, "threshold_tokens"
        case Reason.OVER_THRESHOLD:
            pool, limit = policy.pools[-2], "threshold_tokens"
        case Reason.OVER_CAPACITY:
            pool, limit = policy.pools[-2], "max_model_len"
        case Reason.SPILLED:
            pool = policy.choose(decision.bound_budget_tokens).pool
            return {"pool": pool.name, "limit": "load"}
        case _:
            return None
    limit_tokens: int = getattr(pool, limit)
    return {
        "pool": pool.name,
        "limit": limit,
        "limit_tokens": limit_tokens,
        "budget_tokens": decision.bound_budget_tokens,
        "within": decision.bound_budget_tokens <= limit_tokens,
    }
