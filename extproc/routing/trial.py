"""A trial of a challenger, to decide whether the model behind a name has changed.

A challenger that learned from recent prompts alone is compared with the incumbent on
each new prompt. A new kind of text increases the incumbent's error too, and many
prompts of one kind favor a model that has learned only that kind. The challenger must
therefore be better on several kinds.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field

LEAST_OBSERVATIONS = 12
LONGEST = 256
"""Number of observations after which a trial ends without a change."""

# The challenger's error must be below this share of the incumbent's, both on recent
# prompts and in each category that counts.
_BETTER = 0.75
_CATEGORIES = 2
# With only one category, the challenger must win this share of the prompts.
_WON_SHARE = 2 / 3

# Weight of the newest error in the running means.
_RECENT = 1 / 16
_CLIPPED_ERROR = 1.0


@dataclass(slots=True)
class _Errors:
    incumbent: float = 0.0
    challenger: float = 0.0
    observations: int = 0
    won: int = 0

    def add(self, incumbent: float, challenger: float) -> None:
        self.incumbent += incumbent
        self.challenger += challenger
        self.observations += 1
        self.won += challenger < incumbent

    @property
    def better(self) -> bool:
        return self.challenger < _BETTER * self.incumbent


@dataclass(slots=True)
class Trial:
    """Errors of both models: absolute logarithms of counted over estimated tokens.

    Args:
        known: categories that the incumbent has learned before the trial; empty if
            unknown.
    """

    known: Collection[str] = ()
    observations: int = 0
    _incumbent: float = 0.0
    _challenger: float = 0.0
    _by_category: dict[str, _Errors] = field(default_factory=dict)

    def add(self, category: str, incumbent: float, challenger: float) -> None:
        """Compare the errors of both models on one prompt."""
        incumbent = min(incumbent, _CLIPPED_ERROR)
        challenger = min(challenger, _CLIPPED_ERROR)
        self._incumbent += _RECENT * (incumbent - self._incumbent)
        self._challenger += _RECENT * (challenger - self._challenger)
        self._by_category.setdefault(category, _Errors()).add(incumbent, challenger)
        self.observations += 1

    @property
    def over(self) -> bool:
        """Whether the trial ended without a change."""
        return self.observations > LONGEST

    @property
    def won(self) -> bool:
        """Whether the challenger is the better model."""
        if self.observations < LEAST_OBSERVATIONS:
            return False
        if self._challenger >= _BETTER * self._incumbent:
            return False
        errors = self._by_category
        familiar = [errors[name] for name in errors if name in self.known]
        kinds = familiar if self.known else list(errors.values())
        if len(self.known) == 1 or (not self.known and len(kinds) == 1):
            return any(
                kind.better and kind.won >= _WON_SHARE * kind.observations
                for kind in kinds
            )
        return sum(kind.better for kind in kinds) >= _CATEGORIES
