"""A decision, written down for whoever brings its outcome later.

Gateways without ext_proc ask once before the request and come back after the response,
perhaps to another process. What is needed to learn travels with them: numbers and the
model's name, no text. A decision token is not signed: a caller that may send outcomes
may also lie about them, so the port must not face clients.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Annotated

import msgspec
import numpy as np

from extproc.routing.features import CLASSES, Counts, Features
from extproc.routing.policy import Policy, Reason
from extproc.routing.request import MAX_MODEL_CHARS
from extproc.routing.router import Decision

_VERSION = 1
_PAIRS = CLASSES * CLASSES

_Count = Annotated[int, msgspec.Meta(ge=0, le=1 << 40)]
_Pair = Annotated[int, msgspec.Meta(ge=0, lt=_PAIRS)]
_Name = Annotated[str, msgspec.Meta(max_length=MAX_MODEL_CHARS)]


class _Sparse(msgspec.Struct, array_like=True):
    pairs: Annotated[list[_Pair], msgspec.Meta(max_length=_PAIRS)]
    counts: Annotated[list[_Count], msgspec.Meta(max_length=_PAIRS)]


class _Features(msgspec.Struct, array_like=True):
    text_bytes: _Count
    tools_bytes: _Count
    messages: _Count
    tools: _Count
    pairs: _Sparse
    tools_pairs: _Sparse


class _DecisionToken(msgspec.Struct, array_like=True):
    version: int
    classes: int
    pool: _Name
    reason: Reason
    category: _Name
    model: _Name
    body_bytes: _Count
    prompt_tokens: _Count
    bound_tokens: _Count
    output_tokens: _Count
    declared: bool
    prompts: _Count
    sequences: _Count
    usage_not_requested: bool
    features: _Features | None


_decode = msgspec.msgpack.Decoder(_DecisionToken).decode


def write_decision_token(decision: Decision) -> bytes:
    """Write a decision down: about 0.5 KiB, 2 KiB at the most for many scripts."""
    features = decision.features
    return msgspec.msgpack.encode(
        _DecisionToken(
            version=_VERSION,
            classes=CLASSES,
            pool=decision.pool.name,
            reason=decision.reason,
            category=decision.category,
            model=decision.model,
            body_bytes=decision.body_bytes,
            prompt_tokens=decision.prompt_tokens,
            bound_tokens=decision.bound_tokens,
            output_tokens=decision.output_tokens,
            declared=decision.declared,
            prompts=decision.prompts,
            sequences=decision.sequences,
            usage_not_requested=decision.usage_not_requested,
            features=None if features is None else _write_features(features),
        )
    )


def read_decision_token(
    decision_token: bytes, policy: Policy, categories: Collection[str]
) -> Decision | None:
    """Read a decision back, or return None if its configuration is another.

    Args:
        decision token: untrusted bytes; never raises on them.
        policy: whose pools it may name.
        categories: those that it may name.
    """
    try:
        read = _decode(decision_token)
    except (msgspec.MsgspecError, ValueError):
        return None
    pool = policy.pool(read.pool)
    known = read.version == _VERSION and read.classes == CLASSES
    if not known or pool is None or read.category not in categories:
        return None
    features = None
    if read.features is not None:
        features = _read_features(read.features, read.body_bytes)
        if features is None:
            return None
    return Decision(
        pool=pool,
        reason=read.reason,
        category=read.category,
        model=read.model,
        body_bytes=read.body_bytes,
        prompt_tokens=read.prompt_tokens,
        bound_tokens=read.bound_tokens,
        output_tokens=read.output_tokens,
        declared=read.declared,
        prompts=read.prompts,
        sequences=read.sequences,
        usage_not_requested=read.usage_not_requested,
        features=features,
    )


def _write_features(features: Features) -> _Features:
    return _Features(
        text_bytes=features.text_bytes,
        tools_bytes=features.tools_bytes,
        messages=features.messages,
        tools=features.tools,
        pairs=_sparse(features.pairs),
        tools_pairs=_sparse(features.tools_pairs),
    )


def _sparse(pairs: Counts) -> _Sparse:
    where = np.flatnonzero(pairs)
    return _Sparse(where.tolist(), pairs[where].tolist())


def _read_features(read: _Features, body_bytes: int) -> Features | None:
    pairs = _dense(read.pairs, read.text_bytes)
    tools_pairs = _dense(read.tools_pairs, read.tools_bytes)
    if pairs is None or tools_pairs is None:
        return None
    return Features(
        body_bytes=body_bytes,
        text_bytes=read.text_bytes,
        tools_bytes=read.tools_bytes,
        messages=read.messages,
        tools=read.tools,
        pairs=pairs,
        tools_pairs=tools_pairs,
    )


def _dense(sparse: _Sparse, text_bytes: int) -> Counts | None:
    distinct = len(set(sparse.pairs)) == len(sparse.pairs) == len(sparse.counts)
    if not distinct or sum(sparse.counts) > text_bytes:
        return None
    pairs: Counts = np.zeros(_PAIRS, dtype=np.int64)
    pairs[sparse.pairs] = sparse.counts
    return pairs
