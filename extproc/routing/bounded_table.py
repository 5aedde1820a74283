"""A table of bounded size whose keys are text from clients."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

T = TypeVar("T")

MODELS = 64
"""Maximum number of served models learned separately; further names share one entry."""

CATEGORIES = 32
"""Maximum number of categories learned separately for each model."""


class BoundedTable(Generic[T]):
    """A table with one value per key up to a limit; further keys share one value.

    A full table admits a new key only in place of a key that has been idle for
    ``idle_touches`` touches of the table, so that a client that invents keys cannot
    evict the keys in use.

    Args:
        make: returns the value of a new key.
        limit: number of keys with their own value, at least 1.
        idle_touches: number of touches of other keys after which a key can be replaced.
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
        """Number of touches of keys that have no value of their own."""
        self._shared: T | None = None

    def get(self, key: str) -> T | None:
        """Return the key's value, the shared value, or None. Changes nothing."""
        return self._values.get(key, self._shared)

    def own(self, key: str) -> T | None:
        """Return the key's own value, or None. Changes nothing."""
        return self._values.get(key)

    def touch(self, key: str) -> T:
        """Return the value to update for a key; admit the key if there is room."""
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
        """Return the key's own value, admitting it if there is room, or None."""
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
        """Yield the keys that have their own value, with that value."""
        yield from self._values.items()

    def values(self) -> Iterator[T]:
        """Yield every value, including the shared one."""
        yield from self._values.values()
        if self._shared is not None:
            yield self._shared
