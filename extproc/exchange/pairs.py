"""The pairs of texts that a reranker scores, such as a query and a document.

Each pair is a separate prompt that consists of both texts. The longest pair determines
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
        None if one side of the pairs is missing or has no texts.
    """
    for first, second in fields:
        queries, documents = _texts(body.get(first)), _texts(body.get(second))
        if queries and documents:
            break
    else:
        return None
    if len(queries) != len(documents):
        # A single query is paired with each document. vLLM rejects any other request
        # whose numbers of queries and documents differ.
        queries = [max(queries, key=lambda text: _parts_of([text], source).size_bytes)]
        queries *= len(documents)
    pairs = [_parts_of(pair, source) for pair in zip(queries, documents, strict=True)]
    return max(pairs, key=lambda parts: parts.size_bytes), len(pairs)


def _texts(value: Any) -> list[Any]:
    """Return the texts of one side; empty if the side contains anything but texts."""
    if type(value) is dict and type(value.get("content")) is list:
        # In vLLM's multimodal documents, this field is a list of parts. vLLM uses no
        # other field.
        value = value["content"]
    texts = value if type(value) is list else [value]
    return texts if all(type(text) in (str, dict) for text in texts) else []


def _parts_of(pair: Sequence[Any], source: Source) -> PromptParts:
    parts = PromptParts(source)
    for text in pair:
        parts.add([text])
    return parts
