"""A decision as an opaque token, which comes back with the response's outcome.

Gateways without ext_proc ask once before the request and report after the response,
perhaps to another process. The token carries what learning needs: numbers and the
model's name, no text. It is not signed: a caller that may report outcomes may also lie
about them, so the port must not face clients.
"""

from __future__ import annotations

from typing import Annotated

import msgspec
import numpy as np
from msgspec.structs import astuple, replace

from extproc.routing.decision import (
    Count,
    Decision,
    DecisionFields,
    Name,
    decision_fields,
)
from extproc.routing.features import CLASSES, Counts, Features, OptionalFeatures
from extproc.routing.media import MEDIA_TERMS
from extproc.routing.models import AnyRouter
from extproc.routing.request import OptionalKind

_VERSION = 5
_PAIRS = CLASSES * CLASSES

_Class = Annotated[int, msgspec.Meta(ge=0, lt=CLASSES)]
_Term = Annotated[float, msgspec.Meta(ge=0, le=1e9)]
_Pair = Annotated[int, msgspec.Meta(ge=0, lt=_PAIRS)]


class _Sparse(msgspec.Struct, array_like=True):
    pairs: Annotated[list[_Pair], msgspec.Meta(max_length=_PAIRS)]
    counts: Annotated[list[Count], msgspec.Meta(max_length=_PAIRS)]


class _Optional(msgspec.Struct, array_like=True):
    kind: OptionalKind
    text_bytes: Count
    pairs: _Sparse


class _Features(msgspec.Struct, array_like=True):
    text_bytes: Count
    tools_bytes: Count
    messages: Count
    tools: Count
    pairs: _Sparse
    tools_pairs: _Sparse
    optional: list[_Optional]
    runs: Annotated[list[tuple[_Class, Count]], msgspec.Meta(max_length=CLASSES)]
    repetitions: Count


class _Fields(DecisionFields, array_like=True, frozen=True):
    """Positions in place of names: a third of the bytes."""


class _DecisionToken(msgspec.Struct, array_like=True):
    version: int
    classes: int
    decision: _Fields
    model: Name
    usage_not_requested: bool
    conversation: int | None
    turn_spread: Annotated[float, msgspec.Meta(ge=0.0, le=100.0)]
    media: Annotated[tuple[_Term, ...], msgspec.Meta(max_length=len(MEDIA_TERMS))]
    features: _Features | None


_decode = msgspec.msgpack.Decoder(_DecisionToken).decode


def write_decision_token(decision: Decision) -> bytes:
    """Write a decision down: about 0.5 KiB, 2 KiB at the most for many scripts."""
    features = decision.features
    return msgspec.msgpack.encode(
        _DecisionToken(
            version=_VERSION,
            classes=CLASSES,
            decision=_Fields(*astuple(decision_fields(decision))),
            model=decision.model,
            usage_not_requested=decision.usage_not_requested,
            conversation=decision.conversation,
            turn_spread=decision.turn_spread,
            media=decision.media,
            features=None if features is None else _write_features(features),
        )
    )


def read_decision_token(decision_token: bytes, router: AnyRouter) -> Decision | None:
    """Read a decision back, or return None if it is of another configuration.

    Args:
        decision_token: untrusted bytes; never raises on them.
        router: whose pools and categories it may name.
    """
    try:
        token = _decode(decision_token)
    except (msgspec.MsgspecError, ValueError):
        return None
    fields = token.decision
    pool = router.pool(fields.pool)
    known = token.version == _VERSION and token.classes == CLASSES
    if not known or pool is None or fields.category not in router.categories:
        return None
    if len(token.media) not in (0, len(MEDIA_TERMS)):
        return None
    features = None
    if token.features is not None:
        features = _read_features(token.features, fields.body_bytes)
        if features is None:
            return None
    decision = fields.decision(
        pool,
        model=token.model,
        usage_not_requested=token.usage_not_requested,
        media=token.media,
        features=features,
    )
    return replace(
        decision, conversation=token.conversation, turn_spread=token.turn_spread
    )


def _write_features(features: Features) -> _Features:
    return _Features(
        text_bytes=features.text_bytes,
        tools_bytes=features.tools_bytes,
        messages=features.messages,
        tools=features.tools,
        pairs=_sparse(features.pairs),
        tools_pairs=_sparse(features.tools_pairs),
        optional=[
            _Optional(part.kind, part.text_bytes, _sparse(part.pairs))
            for part in features.optional
        ],
        runs=list(features.runs),
        repetitions=features.repetitions,
    )


def _sparse(pairs: Counts) -> _Sparse:
    where = np.flatnonzero(pairs)
    return _Sparse(where.tolist(), pairs[where].tolist())


def _read_features(read: _Features, body_bytes: int) -> Features | None:
    pairs = _dense(read.pairs, read.text_bytes)
    tools_pairs = _dense(read.tools_pairs, read.tools_bytes)
    if pairs is None or tools_pairs is None:
        return None
    optional = []
    for part in read.optional:
        optional_pairs = _dense(part.pairs, part.text_bytes)
        if optional_pairs is None:
            return None
        optional.append(OptionalFeatures(part.kind, part.text_bytes, optional_pairs))
    repeated = read.repetitions + sum(size for _, size in read.runs)
    if repeated > read.text_bytes:
        return None
    if len({part.kind for part in optional}) < len(optional):
        return None
    return Features(
        body_bytes=body_bytes,
        text_bytes=read.text_bytes,
        tools_bytes=read.tools_bytes,
        messages=read.messages,
        tools=read.tools,
        pairs=pairs,
        tools_pairs=tools_pairs,
        optional=tuple(optional),
        runs=tuple(read.runs),
        repetitions=read.repetitions,
    )


def _dense(sparse: _Sparse, text_bytes: int) -> Counts | None:
    distinct = len(set(sparse.pairs)) == len(sparse.pairs) == len(sparse.counts)
    if not distinct or sum(sparse.counts) > text_bytes:
        return None
    pairs: Counts = np.zeros(_PAIRS, dtype=np.int64)
    pairs[sparse.pairs] = sparse.counts
    return pairs
