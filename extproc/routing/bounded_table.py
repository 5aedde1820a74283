"""A table whose keys are client text, and whose size is therefore bounded."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

T = TypeVar("T")

MODELS = 64
"""Served models that are learned apart; names beyond share what is learned."""

CATEGORIES = 32
"""Categories that are learned apart, of one model."""


class BoundedTable(Generic[T]):
    """One value a key up to a limit; the keys beyond share one value.

    A full table lets a newcomer in only for a key that has been idle for
    ``idle_touches`` touches of the table, so that a client who invents keys cannot
    push out those in use.

    Args:
        make: makes the value of a new key.
        limit: keys kept apart, at least 1.
        idle_touches: touches of other keys after which a key's place may be taken.
    """

    def __init__(
        self, make: Callable[[], T], limit: int = MODELS, idle_touches: int = 20_000
    ) -> None:
        self._make = make
        self._limit = limit
        self._idle_touches = idle_touches
        self._values: dict[str, T] = {}
        self._touched: dict[str, int] = {}
        self._touches = 0
        self.shared_touches = 0
        """Touches of keys that are not kept apart."""
        self._shared: T | None = None

    def get(self, key: str) -> T | None:
        """Return the key's value, else the shared one, else None. Changes nothing."""
        return self._values.get(key, self._shared)

    def own(self, key: str) -> T | None:
        """Return the key's value if it is kept apart, else None. Changes nothing."""
        return self._values.get(key)

    def touch(self, key: str) -> T:
        """Return the value to learn into, admitting the key where there is room."""
        self._touches += 1
        if key not in self._values and not self._make_room():
            self.shared_touches += 1
            if self._shared is None:
                self._shared = self._make()
            return self._shared
        self._touched[key] = self._touches
        value = self._values.get(key)
        if value is None:
            value = self._values[key] = self._make()
        return value

    def admit(self, key: str) -> T | None:
        """Return the key's value if it is there or there is room, else None."""
        if key not in self._values and len(self._values) >= self._limit:
            return None
        return self.touch(key)

    def _make_room(self) -> bool:
        if len(self._values) < self._limit:
            return True
        idlest = min(self._touched, key=self._touched.__getitem__)
        if self._touches - self._touched[idlest] <= self._idle_touches:
            return False
        del self._values[idlest], self._touched[idlest]
        return True

    def __len__(self) -> int:
        return len(self._values)

    def items(self) -> Iterator[tuple[str, T]]:
        """Yield the keys that are kept apart, with their values."""
        yield from self._values.items()

    def values(self) -> Iterator[T]:
        """Yield every value, the shared one included."""
        yield from self._values.values()
        if self._shared is not None:
            yield self._shared
