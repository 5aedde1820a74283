"""Serializes the learned state, and validates it fully when it is read.

The format is two lines of JSON: a header with the checksum of the second line, and the
state.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field

import msgspec
import numpy as np

from extproc.routing.mergeable import DecayedSums
from extproc.server.learned.store import UnreadableDocument

VERSION = 2
"""Version of the format. In version 1, the estimator's component contained the bound's
sums."""
NAME = f"learned.v{VERSION}.json"
"""File name, or key in Redis. It contains the version of the format, so that servers of
two versions do not replace each other's state while both run during an upgrade."""

EARLIER_NAMES = [f"learned.v{version}.json" for version in range(1, VERSION)]
"""Names of documents in earlier formats, which this version does not read."""

FORMAT = "token-budget-router learned state"

MAX_GROUPS = 8192
"""Maximum number of groups of one component: 2 for each of 64 models and 64 categories.
Further groups are dropped."""


@dataclass(frozen=True, slots=True)
class Document:
    """The combined learned state of all processes."""

    components: Mapping[str, Mapping[str, DecayedSums]] = field(default_factory=dict)
    """Sums by ``Mergeable.component`` and group."""
    writers: Mapping[str, int] = field(default_factory=dict)
    """Number of the last write of each process, by the random name of the process. If
    the answer to a write was lost, this number shows whether the write succeeded."""


class _Head(msgspec.Struct):
    format: str
    version: int
    crc32: int = 0


class _Group(msgspec.Struct, array_like=True):
    keep: float
    observations: int
    sums: bytes
    """Little-endian float64 in base64: exact, and half the size of decimal digits."""
    epoch: int = 0


_decode_json = msgspec.json.Decoder(_Group).decode


class _Body(msgspec.Struct):
    components: dict[str, dict[str, msgspec.Raw]]
    """Groups, which are decoded one at a time because decoding megabytes at once would
    block all other threads."""
    writers: dict[str, int]


def encode(document: Document) -> bytes:
    """Serialize a document exactly, without rounding its floats."""
    components = {
        component: {
            key: _encode_group(group)
            for key, group in list(groups.items())[:MAX_GROUPS]
        }
        for component, groups in document.components.items()
    }
    body = msgspec.json.encode(_Body(components, dict(document.writers)))
    head = msgspec.json.encode(_Head(FORMAT, VERSION, zlib.crc32(body)))
    return head + b"\n" + body + b"\n"


def _encode_group(group: DecayedSums) -> msgspec.Raw:
    sums = group.sums.astype("<f8").tobytes()
    written = _Group(group.keep, group.observations, sums, group.epoch)
    return msgspec.Raw(msgspec.json.encode(written))


def decode(data: bytes) -> Document:
    """Parse and validate a document.

    Raises:
        UnreadableDocument: the data is foreign, of a later version, truncated or
            corrupt.
    """
    first, _, body = data.partition(b"\n")
    try:
        head = msgspec.json.decode(first, type=_Head)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise UnreadableDocument(
            "foreign", "not a learned state of this program"
        ) from None
    if head.format != FORMAT:
        raise UnreadableDocument("foreign", "not a learned state of this program")
    if head.version > VERSION:
        reason = f"version {head.version}; this server reads up to {VERSION}"
        raise UnreadableDocument("future", reason)
    if not body.endswith(b"\n"):
        raise UnreadableDocument("truncated", "truncated")
    if zlib.crc32(body[:-1]) != head.crc32:
        raise UnreadableDocument("corrupt", "checksum mismatch")
    try:
        parsed = msgspec.json.decode(body, type=_Body)
        components = {
            component: {key: _decode_group(key, raw) for key, raw in groups.items()}
            for component, groups in parsed.components.items()
        }
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise UnreadableDocument("corrupt", str(error)) from None
    return Document(components, parsed.writers)


def _decode_group(key: str, raw: msgspec.Raw) -> DecayedSums:
    group = _decode_json(raw)
    if len(group.sums) % 8:
        raise UnreadableDocument("corrupt", f"sums of {key!r} are cut off")
    sums = np.frombuffer(group.sums, dtype="<f8").astype(np.float64)
    if not np.isfinite(sums).all() or not 0.0 < group.keep <= 1.0:
        raise UnreadableDocument("corrupt", f"sums of {key!r} are not finite")
    if min(group.observations, group.epoch) < 0:
        raise UnreadableDocument("corrupt", f"counts of {key!r} are negative")
    return DecayedSums(group.keep, group.observations, sums, group.epoch)
