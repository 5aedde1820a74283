"""A decision as an opaque token that is returned with the response's outcome.

Gateways without ext_proc call once before the request and report the outcome after the
response, perhaps to another process. The token contains what learning needs: numbers
and the model's name, no text. It is not signed: a client that can report outcomes can
also forge them, so clients must not be able to reach the port.
"""

from __future__ import annotations

from typing import Annotated

import msgspec
import numpy as np
from msgspec.structs import astuple, replace

from extproc.routing.arrays import Vector
from extproc.routing.decision import (
    Count,
    Decision,
    DecisionFields,
    Name,
    decision_fields,
)
from extproc.routing.features import Features, OptionalFeatures
from extproc.routing.media import MEDIA_TERMS
from extproc.routing.models import AnyRouter
from extproc.routing.regressors import (
    REPETITION,
    TERMS_CHECKSUM,
    TEXT_COUNTED,
    TOOLS_COUNTED,
    VECTOR_TERMS,
    complete,
)
from extproc.routing.request import OptionalKind

_VERSION = 6
_COUNTED = slice(TOOLS_COUNTED.start, REPETITION + 1)
"""The terms that are written; the other terms are computed from these."""

_Term = Annotated[float, msgspec.Meta(ge=0, le=1e9)]
_Place = Annotated[int, msgspec.Meta(ge=_COUNTED.start, lt=_COUNTED.stop)]


class _Sparse(msgspec.Struct, array_like=True):
    places: Annotated[list[_Place], msgspec.Meta(max_length=len(VECTOR_TERMS))]
    counts: Annotated[list[Count], msgspec.Meta(max_length=len(VECTOR_TERMS))]


class _Optional(msgspec.Struct, array_like=True):
    kind: OptionalKind
    text_bytes: Count
    terms: _Sparse


class _Features(msgspec.Struct, array_like=True):
    text_bytes: Count
    tools_bytes: Count
    messages: Count
    tools: Count
    terms: _Sparse
    optional: list[_Optional]


class _Fields(DecisionFields, array_like=True, frozen=True):
    """The token's fields; an array without names takes a third of the bytes."""


class _DecisionToken(msgspec.Struct, array_like=True):
    version: int
    terms: int
    """Checksum of the feature terms."""
    decision: _Fields
    model: Name
    usage_not_requested: bool
    conversation: int | None
    turn_spread: Annotated[float, msgspec.Meta(ge=0.0, le=100.0)]
    media: Annotated[tuple[_Term, ...], msgspec.Meta(max_length=len(MEDIA_TERMS))]
    features: _Features | None


_decode = msgspec.msgpack.Decoder(_DecisionToken).decode


def write_decision_token(decision: Decision) -> bytes:
    """Encode a decision in about 0.5 KiB, or up to 2 KiB for text in many scripts."""
    features = decision.features
    return msgspec.msgpack.encode(
        _DecisionToken(
            version=_VERSION,
            terms=TERMS_CHECKSUM,
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
    """Decode a decision; return None if it is invalid or from another configuration.

    Args:
        decision_token: untrusted bytes; never raises on them.
        router: defines the valid pools and categories.
    """
    try:
        token = _decode(decision_token)
    except (msgspec.MsgspecError, ValueError):
        return None
    fields = token.decision
    pool = router.pool(fields.pool)
    known = token.version == _VERSION and token.terms == TERMS_CHECKSUM
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
        terms=_sparse(features.terms),
        optional=[
            _Optional(part.kind, part.text_bytes, _sparse(part.terms))
            for part in features.optional
        ],
    )


def _sparse(terms: Vector) -> _Sparse:
    where = np.flatnonzero(terms[_COUNTED]) + _COUNTED.start
    return _Sparse(where.tolist(), terms[where].astype(np.int64).tolist())


def _read_features(read: _Features, body_bytes: int) -> Features | None:
    terms = _dense(read.terms, read.text_bytes, read.tools_bytes)
    if terms is None:
        return None
    optional = []
    for part in read.optional:
        optional_terms = _dense(part.terms, part.text_bytes, 0)
        if optional_terms is None:
            return None
        optional.append(OptionalFeatures(part.kind, part.text_bytes, optional_terms))
    if len({part.kind for part in optional}) < len(optional):
        return None
    complete(terms, read.messages, read.tools)
    return Features(
        body_bytes=body_bytes,
        text_bytes=read.text_bytes,
        tools_bytes=read.tools_bytes,
        messages=read.messages,
        tools=read.tools,
        terms=terms,
        optional=tuple(optional),
    )


def _dense(sparse: _Sparse, text_bytes: int, tools_bytes: int) -> Vector | None:
    distinct = len(set(sparse.places)) == len(sparse.places) == len(sparse.counts)
    if not distinct:
        return None
    terms = np.zeros(len(VECTOR_TERMS))
    terms[sparse.places] = sparse.counts
    of_text, of_tools = terms[TEXT_COUNTED].sum(), terms[TOOLS_COUNTED].sum()
    # Counts from a sample are rounded: each may exceed its exact value by half a byte.
    if of_text > text_bytes + len(VECTOR_TERMS) or terms[REPETITION] > text_bytes:
        return None
    return terms if of_tools <= tools_bytes + len(VECTOR_TERMS) else None
