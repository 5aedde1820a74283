"""The pairs of texts that a reranker scores, such as a query and a document.

Each pair is a separate prompt that consists of both texts. The longest determines
whether a pool fits.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from extproc.exchange.prompt_parts import PromptParts
from extproc.exchange.source import Source
from extproc.json_object import JsonObject

RERANK_FIELDS = (("query", "documents"),)
SCORE_FIELDS = (
    ("text_1", "text_2"),
    ("data_1", "data_2"),
    ("queries", "documents"),
    ("queries", "items"),
)
"""Field names of the two sides in vLLM's score API, old and new."""


def longest_pair(
    body: JsonObject, source: Source, fields: Sequence[tuple[str, str]]
) -> tuple[PromptParts, int] | None:
    """Return the parts of the request's longest pair, and the number of pairs.

    Args:
        body: the request.
        source: resolves references in its texts.
        fields: field names of the two sides; the first pair present is used.

    Returns:
        None if the request lacks a side of texts.
    """
    for names in fields:
        sides = [_side(body.get(name), source) for name in names]
        if sides[0] and sides[1]:
            return _longest(sides[0], sides[1], source)
    return None


def _side(value: Any, source: Source) -> list[PromptParts]:
    """Return the parts of each text on one side."""
    if type(value) is dict and type(value.get("content")) is list:
        value = value["content"]  # vLLM's multimodal documents: a list of parts
    texts = value if type(value) is list else [value]
    if not all(type(text) in (str, dict) for text in texts):
        return []
    side = []
    for text in texts:
        parts = PromptParts(source)
        parts.add([text])
        side.append(parts)
    return side


def _longest(
    queries: list[PromptParts], documents: list[PromptParts], source: Source
) -> tuple[PromptParts, int]:
    """Pair the sides one to one if their lengths match, else the first with each."""
    paired = len(queries) == len(documents)
    left = queries if paired else queries[:1] * len(documents)
    pairs = list(zip(left, documents, strict=True))

    def size_bytes(pair: tuple[PromptParts, PromptParts]) -> int:
        return sum(source.size_bytes(text) for side in pair for text in side.texts)

    query, document = max(pairs, key=size_bytes)
    document.texts[:0] = query.texts
    document.images += query.images
    document.audios += query.audios
    document.files += query.files
    return document, len(pairs)
