"""Find the API that a request's path names."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from urllib.parse import unquote

from extproc.exchange.openai import (
    CHAT,
    COMPLETIONS,
    EMBEDDINGS,
    ENDPOINTS,
    RESPONSES,
    Endpoint,
)

MAX_PATH_CHARS = 2048
"""Maximum length of a path without its query; a request with a longer path is not
routed."""

UNREAD = frozenset(
    {
        "/classify",
        "/detokenize",
        "/invocations",
        "/pooling",
        "/tokenize",
        "/v1/audio/speech",
        "/v1/audio/transcriptions",
        "/v1/audio/translations",
        "/v1/files",
        "/v1/images/edits",
        "/v1/images/generations",
        "/v1/messages/count_tokens",
        "/v1/moderations",
    }
)
"""Paths of vLLM and OpenAI whose requests are not read, because they have no token
budget or their bodies are files. Such requests keep their original route."""

_DEPLOYMENTS = "/openai/deployments/"
_MAX_SEGMENTS = 3
"""Number of segments in the longest API path."""

_STORED_RESPONSE = re.compile("(.*/responses)/[^/]+(/cancel|/input_items)?")

_ESCAPED_UNRESERVED = re.compile(
    "%(2D|2E|5F|7E|3[0-9]|[46][1-9A-F]|[57][0-9A])", re.IGNORECASE
)
"""Unnecessarily escaped characters (RFC 3986, section 2.3)."""


@dataclass(frozen=True, slots=True)
class Target:
    """The API and model that a request path names."""

    endpoint: Endpoint
    model: str = ""
    """The model in the path, as in Azure's deployments; empty if the body names it."""


_TARGETS = {path: Target(endpoint) for path, endpoint in ENDPOINTS.items()}

_VERSIONED = {
    path: target for path, target in _TARGETS.items() if path[:3] in ("/v1", "/v2")
}
"""API paths with a version, found after any prefix. vLLM's ``/score`` and ``/rerank``
have no version."""

_UNVERSIONED = {
    each.path.removeprefix("/v1"): Target(each)
    for each in (CHAT, COMPLETIONS, EMBEDDINGS)
}
"""API paths without a version, for clients whose base URL lacks the version that a
gateway adds, and for Azure's deployments. The last segments of other APIs are too
generic to match."""


class PathTable:
    """The request paths whose requests are routed by budget.

    Args:
        prefixes: prefixes that an API path may have, with or without its ``/v1``; None
            accepts any.
    """

    def __init__(self, prefixes: Sequence[str] | None = None) -> None:
        self._any_prefix = prefixes is None
        self._prefixes = frozenset(p.rstrip("/") for p in prefixes or ())
        self._targets: Mapping[str, Target] = _TARGETS
        if prefixes is not None:
            self._targets = {
                prefix + path: target
                for prefix in self._prefixes
                for path, target in _paths_under(prefix)
            }

    def find(self, path: str) -> Target | None:
        """Return the API and model that a request path names, or None.

        Args:
            path: as received, including the query string.
        """
        return self._targets.get(path) or self._find_normalized(normalize(path))

    def _find_normalized(self, path: str) -> Target | None:
        if len(path) > MAX_PATH_CHARS:
            return None
        target = self._targets.get(path) or self._find_deployment(path)
        if target is None and self._any_prefix:
            target = _find_tail(path, _VERSIONED) or _find_tail(path, _UNVERSIONED)
        return target

    def _find_deployment(self, path: str) -> Target | None:
        """Match Azure's ``/openai/deployments/MODEL/API``."""
        prefix, found, rest = path.partition(_DEPLOYMENTS)
        if not found or not (self._any_prefix or prefix in self._prefixes):
            return None
        model, slash, tail = rest.partition("/")
        target = _UNVERSIONED.get(slash + tail)
        return None if target is None else Target(target.endpoint, unquote(model))

    def is_stored_response(self, path: str) -> bool:
        """Whether a path names a stored response.

        These are the paths to retrieve, delete or cancel it, or to list its input:
        ``/v1/responses/ID`` and ``/v1/responses/ID/cancel``, after any accepted prefix.
        """
        if "/responses/" not in path:
            return False
        found = _STORED_RESPONSE.fullmatch(normalize(path))
        target = self._find_normalized(found[1]) if found else None
        return target is not None and target.endpoint is RESPONSES

    def is_unread(self, path: str) -> bool:
        """Whether a path is in ``UNREAD``, after any prefix."""
        return any(tail in UNREAD for tail in _tails(normalize(path)))


def normalize(path: str) -> str:
    """Normalize a path as Envoy's ``normalize_path`` and ``merge_slashes`` do.

    Query, fragment and trailing slash are removed. An escaped slash is kept
    (``path_with_escaped_slashes_action: KEEP_UNCHANGED``).
    """
    path = path.partition("?")[0].partition("#")[0]
    if len(path) > MAX_PATH_CHARS:
        return path
    if "%" in path:
        path = _ESCAPED_UNRESERVED.sub(lambda found: unquote(found[0]), path)
    if "//" in path or "/." in path or path.endswith("/"):
        path = _without_dots(path)
    return path


def _without_dots(path: str) -> str:
    kept: list[str] = []
    for segment in path.split("/"):
        if segment == "..":
            del kept[-1:]
        elif segment not in ("", "."):
            kept.append(segment)
    return "/" + "/".join(kept)


def _paths_under(prefix: str) -> Iterator[tuple[str, Target]]:
    for path, target in _TARGETS.items():
        yield path, target
        if prefix:
            yield path.removeprefix("/v1"), target


def _tails(path: str) -> Iterator[str]:
    """Yield the last three, two and one segments of a path."""
    segments = path.rsplit("/", _MAX_SEGMENTS)
    for first in range(1, len(segments)):
        yield "/" + "/".join(segments[first:])


def _find_tail(path: str, targets: Mapping[str, Target]) -> Target | None:
    for tail in _tails(path):
        target = targets.get(tail)
        if target is not None:
            return target
    return None


ANY_PREFIX = PathTable()
"""The default table, if no prefixes are configured."""
