"""The store in Redis or Valkey, for replicas on several machines."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import redis

from extproc.server.learned.store import (
    MAX_DOCUMENT_BYTES,
    OF_EARLIER_VERSION,
    Change,
    SetAside,
    StoreError,
    UnreadableDocument,
)

_CONNECT_TIMEOUT_S = 1.0
_ANSWER_TIMEOUT_S = 2.0
_REASONS = (
    (redis.AuthenticationError, "user or password rejected"),
    (redis.TimeoutError, "timeout"),
    (redis.ConnectionError, "unreachable"),
    (redis.ResponseError, "command rejected"),
)
"""Reason to log for each type of error. An error's own text may contain the user and
host of the URL."""

_ATTEMPTS = 8
"""Maximum number of attempts at an update. If another writer is faster, the update is
retried. With replicas that write every few seconds, the second attempt nearly always
succeeds."""


def _reason(error: redis.RedisError) -> str:
    return next((text for kind, text in _REASONS if isinstance(error, kind)), "failed")


class RedisStore:
    """A key that is updated with optimistic locking (WATCH, MULTI, EXEC).

    Args:
        url: ``redis://``, ``rediss://`` (TLS) or ``unix://``, as redis-py accepts them.
        key: key of the document.
        earlier_keys: keys that servers of earlier versions use.

    Raises:
        ValueError: the URL has another scheme.
    """

    def __init__(self, url: str, key: str, earlier_keys: Sequence[str] = ()) -> None:
        self._client: Any = redis.Redis.from_url(
            url,
            socket_connect_timeout=_CONNECT_TIMEOUT_S,
            socket_timeout=_ANSWER_TIMEOUT_S,
        )
        self._key = key
        self._earlier_keys = earlier_keys

    def update(self, change: Change) -> SetAside | None:
        """Update the document atomically."""
        try:
            for _ in range(_ATTEMPTS):
                with self._client.pipeline() as pipeline, suppress(redis.WatchError):
                    return self._attempt(pipeline, change)
        except redis.RedisError as error:
            raise StoreError(f"redis: {_reason(error)}") from error
        raise StoreError("redis: too many concurrent writers")

    def _attempt(self, pipeline: Any, change: Change) -> SetAside | None:
        pipeline.watch(self._key)
        try:
            aside = None
            stored = self._read(pipeline)
            if stored is None:
                aside = self._earlier_document(pipeline)
            changed = change(stored)
            pipeline.multi()
        except UnreadableDocument as found:
            changed = change(None)
            aside = SetAside(f"{self._key}.{found.kind}", found.reason)
            pipeline.multi()
            pipeline.rename(self._key, aside.place)
        if changed is not None:
            pipeline.set(self._key, changed)
        pipeline.execute()
        return aside

    def _earlier_document(self, pipeline: Any) -> SetAside | None:
        for key in self._earlier_keys:
            if pipeline.exists(key):
                return SetAside(key, OF_EARLIER_VERSION)
        return None

    def _read(self, pipeline: Any) -> bytes | None:
        if pipeline.strlen(self._key) > MAX_DOCUMENT_BYTES:
            raise UnreadableDocument("too-large", f"over {MAX_DOCUMENT_BYTES} bytes")
        content: bytes | None = pipeline.get(self._key)
        return content
