"""An upper bound around any estimator: estimates at a stated risk.

The estimator predicts a point and its own spread; the margin turns the spread into a
factor. Neither knows the other, so each estimator can hold a stated risk, and the
papers' own can do without (``risk.NoMargin``).
"""

from __future__ import annotations

import math

import msgspec

from extproc.routing.estimate import (
    Estimate,
    EstimateTerms,
    Estimator,
    Prediction,
    most_tokens,
)
from extproc.routing.features import Features, measure_text
from extproc.routing.mergeable import Mergeable
from extproc.routing.risk import Margin, NoMargin


class QuickEstimate(msgspec.Struct, frozen=True, gc=False):
    """An estimate that takes a third of the time, and what the exact one can be."""

    estimate: Estimate
    """The exact point estimate, with a bound of the usual factor."""
    largest_bound_tokens: int
    """The exact bound is at most this."""


class Turn(msgspec.Struct, frozen=True, gc=False):
    """An estimate of a prompt that continues a counted one."""

    estimate: Estimate
    spread: float
    """As of ``Prediction``, of the whole prompt."""


_EMPTY_MESSAGE = measure_text(b"", 1)

TURN = "turn"
"""What a margin learns of continued prompts by, in place of their category."""


class Bounded:
    """Estimates prompt tokens with a bound, and teaches both from counted prompts.

    Not thread-safe.

    Args:
        estimator: makes the point estimates.
        margin: makes the bounds; by default one that 1 % of the prompts may exceed.
    """

    def __init__(
        self, estimator: Estimator, margin: Margin | NoMargin | None = None
    ) -> None:
        self.estimator = estimator
        self.margin = margin or Margin()

    @property
    def name(self) -> str:
        """The estimator's name."""
        return self.estimator.name

    @property
    def learners(self) -> list[Mergeable]:
        """The parts whose knowledge can be kept and shared."""
        parts = (self.estimator, self.margin)
        return [part for part in parts if isinstance(part, Mergeable)]

    def estimate(self, model: str, category: str, features: Features) -> Estimate:
        """Estimate the prompt tokens of a request for a served model."""
        return self._bound(
            model, category, features, self.estimator.predict(model, category, features)
        )

    def count_answer(
        self, model: str, category: str, answer: Features, tokens: int
    ) -> int | None:
        """Return what a counted answer takes as a message of the next prompt.

        None if the message seems to be another text: a response's count may hold
        reasoning, which templates leave out later, and clients may edit an answer.

        Args:
            model: served model's name.
            category: of the prompt.
            answer: features of the message.
            tokens: of the answer as its response counted them, its end among them.
        """
        guessed = self.estimator.continued(model, category, answer)
        around = self.estimator.continued(model, category, _EMPTY_MESSAGE).tokens
        counted = tokens - 1 + max(1, round(around))
        factor = self.margin.factor(model, category, guessed.spread)
        fits = guessed.tokens / factor <= counted <= guessed.tokens * factor
        return counted if fits else None

    def estimate_turn(
        self,
        model: str,
        category: str,
        features: Features,
        known_tokens: int,
        added: Features,
    ) -> Turn | None:
        """Estimate a prompt that continues a counted one, or None if it seems not to.

        The count is not believed if it puts the prompt outside the bounds of its own
        estimate: the template may have dropped what was counted.

        Args:
            model: served model's name.
            category: of the prompt.
            features: of the whole prompt.
            known_tokens: of its first messages, as they were counted.
            added: features of the messages after those.
        """
        further = self.estimator.continued(model, category, added)
        tokens = known_tokens + (further.tokens if added.text_bytes else 0.0)
        whole = self.estimator.predict(model, category, features)
        factor = self.margin.factor(model, category, whole.spread)
        if not whole.tokens / factor <= tokens <= whole.tokens * factor:
            return None
        spread = max(further.tokens * further.spread, 1.0) / tokens
        factor = self.margin.factor(model, TURN, spread)
        return Turn(_apply(features, tokens, factor), spread)

    def quick_estimate(
        self, model: str, category: str, features: Features
    ) -> QuickEstimate:
        """Estimate with the factor of the category's latest bound."""
        factor = self.margin.latest_factor(model, category)
        if factor is None:
            estimate = self.estimate(model, category, features)
            return QuickEstimate(estimate, estimate.bound_tokens)
        point = self.estimator.point(model, category, features)
        return QuickEstimate(
            _apply(features, point, factor), math.ceil(point * self.margin.max_factor)
        )

    def observe(
        self,
        model: str,
        category: str,
        features: Features,
        prompt_tokens: int,
        turn: Turn | None = None,
    ) -> None:
        """Learn from one counted prompt (``prompt_tokens`` > 0).

        Args:
            model: a name that a backend has answered to.
            category: of the prompt.
            features: of the whole prompt.
            prompt_tokens: as the backend counted them.
            turn: its estimate, if it continued a counted prompt.
        """
        if turn is not None:
            self.estimator.observe(model, category, features, prompt_tokens)
            self.margin.observe(
                model,
                TURN,
                turn.spread,
                math.log(prompt_tokens / turn.estimate.prompt_tokens),
                prompt_tokens > turn.estimate.bound_tokens,
            )
            return
        predicted = self.estimator.observe(model, category, features, prompt_tokens)
        bounded = self._bound(model, category, features, predicted)
        self.margin.observe(
            model,
            category,
            predicted.spread,
            math.log(prompt_tokens / predicted.tokens),
            prompt_tokens > bounded.bound_tokens,
        )

    def explain(self, model: str, category: str, features: Features) -> EstimateTerms:
        """Return the numbers behind ``estimate`` of the same arguments, by name."""
        predicted = self.estimator.predict(model, category, features)
        return {
            **self.estimator.explain(model, category, features),
            "bound": "point estimate * factor",
            "risk": self.margin.rate_of(model),
            "spread": predicted.spread,
            "factor": self.margin.factor(model, category, predicted.spread),
        }

    def _bound(
        self, model: str, category: str, features: Features, predicted: Prediction
    ) -> Estimate:
        factor = self.margin.factor(model, category, predicted.spread)
        return _apply(features, predicted.tokens, factor)


def _apply(features: Features, point: float, factor: float) -> Estimate:
    prompt_tokens = max(1, round(point))
    most = max(prompt_tokens, int(most_tokens(features)))
    return Estimate(prompt_tokens, min(math.ceil(point * factor), most))
