"""An upper bound for any estimator, exceeded at a configured rate.

The estimator predicts a point and its spread; the margin turns the spread into a
factor. Estimator and margin are independent, so every estimator can meet a configured
rate; the papers' estimator also works without a margin (``risk.NoMargin``).
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
    """An estimate in a third of the time, with an upper limit of the exact bound."""

    estimate: Estimate
    """The exact point estimate, with a bound computed from the category's latest
    factor."""
    largest_bound_tokens: int
    """Upper limit of the exact bound."""


class Turn(msgspec.Struct, frozen=True, gc=False):
    """An estimate for a prompt that continues one with a known number of tokens."""

    estimate: Estimate
    spread: float
    """``Prediction.spread`` of the whole prompt."""


_EMPTY_MESSAGE = measure_text(b"", 1)

TURN = "turn"
"""Key under which a margin learns from continued prompts, in place of a category."""


class Bounded:
    """Estimates of prompt tokens with an upper bound; learns from counted prompts.

    Not thread-safe.

    Args:
        estimator: returns the point estimates.
        margin: returns the bounds; by default, 1 % of the prompts may exceed them.
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
        """The parts whose state can be saved and shared."""
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
        """Return the tokens that a counted answer adds to the next prompt.

        Return None if the message seems to differ from the counted answer: a response's
        count may include reasoning, which templates leave out of later prompts, and
        clients may edit an answer.

        Args:
            model: name of the served model.
            category: the prompt's category.
            answer: features of the message.
            tokens: reported length of the answer, including its end token.
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
        added: Features | None,
    ) -> Turn | None:
        """Estimate a prompt that continues a counted one; return None on a mismatch.

        The count is not used if the result is outside the bounds of the prompt's own
        estimate, because the template may have dropped a part of the counted text.

        Args:
            model: name of the served model.
            category: the prompt's category.
            features: features of the whole prompt.
            known_tokens: counted tokens of the first messages.
            added: features of the messages after them; None if there are none.
        """
        tokens, error_tokens = float(known_tokens), 1.0
        if added is not None:
            further = self.estimator.continued(model, category, added)
            tokens += further.tokens if added.text_bytes else 0.0
            error_tokens = max(further.tokens * further.spread, error_tokens)
        whole = self.estimator.predict(model, category, features)
        factor = self.margin.factor(model, category, whole.spread)
        if not whole.tokens / factor <= tokens <= whole.tokens * factor:
            return None
        spread = error_tokens / tokens
        factor = self.margin.factor(model, TURN, spread)
        return Turn(_apply(features, tokens, factor), spread)

    def quick_estimate(
        self, model: str, category: str, features: Features
    ) -> QuickEstimate:
        """Estimate prompt tokens, with a bound from the category's latest factor."""
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
            model: name of a model for which a backend has responded.
            category: the prompt's category.
            features: features of the whole prompt.
            prompt_tokens: number of tokens that the backend reported.
            turn: estimate of the prompt, if it continued a counted prompt.
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
        """Return the numbers behind ``estimate`` for the same arguments, by name."""
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
    bound_tokens = math.ceil(point * factor)
    if bound_tokens > features.text_bytes:  # otherwise it is possible
        most = max(prompt_tokens, int(most_tokens(features)))
        bound_tokens = min(bound_tokens, most)
    return Estimate(prompt_tokens, bound_tokens)
