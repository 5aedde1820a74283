"""The default estimator: a linear model of text, learned online per served model.

Prompt tokens are taken to be linear in the terms of ``terms.TERMS``, with the
coefficients' posterior of ``posterior.Posterior``: what six known tokenizer families
tell beforehand, plus what each counted prompt taught, weighed relative to its size.
The posterior's own uncertainty about a prompt widens its bound: text unlike any that
was seen gets a wider one.
"""

from __future__ import annotations

import math
import zlib
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np

from extproc.routing.bounded_table import BoundedTable
from extproc.routing.estimate import Estimate, QuickEstimate
from extproc.routing.features import Features
from extproc.routing.mergeable import DecayedSums, Groups
from extproc.routing.posterior import Posterior
from extproc.routing.prior import Prior, known_families, relative_variance
from extproc.routing.regressors import TERMS, Vector, Weights, vectorize, weigh
from extproc.routing.risk import MAX_FACTOR, Margin

MODELS = 64
"""Served models told apart; names beyond share one set of coefficients."""

# Observations over which what was learned fades to 1/e.
_MEMORY = 5000.0

# Errors beyond this many expected deviations lose weight with their square: a wrong
# count ten times off then pulls less than an honest one at the edge.
_ROBUST_DEVIATIONS = 4.0

# Weight of the newest error in the running means of errors.
_RECENT = 1 / 16
_CLIPPED_DEVIATIONS = 6.0
_CLIPPED_ERROR = 1.0

# The model behind a name may have changed once its recent errors, in expected
# deviations (0.8 for normal ones), are this large. A challenger then learns beside it
# from the prior alone, and takes over if its own recent errors are this much smaller;
# it is dropped when the errors are calm again, or after a long trial. New kinds of
# text surprise too, but there a challenger seldom does better.
_SURPRISE = 1.5
_CALM = 1.1
_TAKEOVER = 0.75
_TRIAL_OBSERVATIONS = 12
_TRIAL_ENDS_AFTER = 256

_TERMS_EXPLAINED = 12
_POSTERIOR = "posterior:"
_MARGIN = "margin:"
_TERMS_CHECKSUM = zlib.crc32("\n".join(TERMS).encode())


@dataclass(frozen=True, slots=True)
class _Prediction:
    point: float
    """Estimated tokens, within what is possible."""
    spread: float
    """Relative standard deviation of the count about it."""


@dataclass(slots=True)
class _Learned:
    """What one served model's counted prompts taught."""

    posterior: Posterior
    usual_factors: dict[str, float] = field(default_factory=dict)
    """Of the latest bound of each category, over its point estimate."""
    error: float = 0.0
    """Mean of recent errors, as logarithms; since a challenger's start."""
    surprise: float = 0.8
    """Mean of recent errors, in expected deviations."""
    challenger: _Learned | None = None
    _weights: Weights | None = None
    _weighed: Vector | None = None

    @property
    def weights(self) -> Weights:
        """The coefficients believed in, laid out by pair."""
        mean = self.posterior.mean
        if self._weights is None or self._weighed is not mean:
            self._weights, self._weighed = weigh(mean), mean
        return self._weights


def _start(prior: Prior) -> _Learned:
    return _Learned(Posterior(prior, _MEMORY))


class TextEstimator:
    """Estimates prompt tokens from text features, with a bound at the stated risk.

    Not thread-safe.

    Args:
        margin: the stated risk; 1 % where None.
        prior: what to believe of a model that has answered nothing yet.
        models: served models told apart.
    """

    name = "text"
    component = f"text.2.{_TERMS_CHECKSUM:08x}"

    def __init__(
        self,
        margin: Margin | None = None,
        prior: Prior | None = None,
        *,
        models: int = MODELS,
    ) -> None:
        self.margin = margin or Margin(models=models)
        # Not a method: an estimator that refers to itself would stay in memory, with
        # all its matrices, until the garbage collector looks for such cycles.
        self._start = partial(_start, prior or known_families())
        self._models = BoundedTable(self._start, models)
        self._untaught = self._start()

    def estimate(self, model: str, category: str, features: Features) -> Estimate:
        """Estimate the prompt tokens of a request for a served model."""
        learned = self._models.get(model) or self._untaught
        prediction = _predict(learned, features, vectorize(features))
        factor = self.margin.factor(model, category, prediction.spread)
        learned.usual_factors[category] = factor
        return _bounded(features, prediction.point, factor)

    def quick_estimate(
        self, model: str, category: str, features: Features
    ) -> QuickEstimate:
        """Estimate with the factor of the category's latest bound."""
        learned = self._models.get(model) or self._untaught
        factor = learned.usual_factors.get(category)
        if factor is None:
            estimate = self.estimate(model, category, features)
            return QuickEstimate(estimate, estimate.bound_tokens)
        point = _point(learned, features)
        return QuickEstimate(
            _bounded(features, point, factor), math.ceil(point * MAX_FACTOR)
        )

    def observe(
        self, model: str, category: str, features: Features, prompt_tokens: int
    ) -> None:
        """Learn from one counted prompt (``prompt_tokens`` > 0)."""
        learned = self._models.touch(model)
        x = vectorize(features)
        prediction = _predict(learned, features, x)
        factor = self.margin.factor(model, category, prediction.spread)
        learned.usual_factors[category] = factor
        bounded = _bounded(features, prediction.point, factor)
        self.margin.observe(
            model,
            category,
            prediction.spread,
            math.log(prompt_tokens / prediction.point),
            prompt_tokens > bounded.bound_tokens,
        )
        _fold(learned, x, prompt_tokens, prediction)
        self._challenge(learned, features, x, prompt_tokens)

    def explain(self, model: str, category: str, features: Features) -> dict[str, Any]:
        """The terms that weigh most, in tokens, and what the bound is made of."""
        known = self._models.get(model)
        learned = known or self._untaught
        posterior = learned.posterior
        x = vectorize(features)
        prediction = _predict(learned, features, x)
        tokens = x * posterior.mean
        heaviest = np.argsort(-np.abs(tokens))[:_TERMS_EXPLAINED]
        return {
            "formula": "sum of the terms' count * tokens_each; bound: times factor",
            "learned": known is not None,
            "observed": round(posterior.observed, 1),
            "risk": self.margin.rate,
            "spread": prediction.spread,
            "factor": self.margin.factor(model, category, prediction.spread),
            "terms": {
                TERMS[i]: {
                    "count": float(x[i]),
                    "tokens_each": float(posterior.mean[i]),
                    "tokens": float(tokens[i]),
                }
                for i in heaviest.tolist()
                if x[i]
            },
        }

    def _challenge(
        self, learned: _Learned, features: Features, x: Vector, prompt_tokens: int
    ) -> None:
        challenger = learned.challenger
        if challenger is None:
            if learned.surprise > _SURPRISE:
                learned.challenger = self._start()
                learned.error = 0.0
            return
        prediction = _predict(challenger, features, x)
        _fold(challenger, x, prompt_tokens, prediction)
        if challenger.posterior.observed < _TRIAL_OBSERVATIONS:
            return
        if challenger.error < _TAKEOVER * learned.error:
            challenger.posterior.epoch = learned.posterior.epoch + 1
            learned.posterior = challenger.posterior
            learned.surprise = challenger.surprise
            learned.challenger = None
        elif (
            learned.surprise < _CALM
            or challenger.posterior.observed > _TRIAL_ENDS_AFTER
        ):
            learned.challenger = None

    def group_keys(self) -> list[str]:
        """A posterior for each model, and the margin's."""
        posteriors = [f"{_POSTERIOR}{name}" for name, _ in self._models.items()]
        return posteriors + [f"{_MARGIN}{key}" for key in self.margin.group_keys()]

    def group(self, key: str) -> DecayedSums | None:
        """Copy a group's sums out; None if there is none."""
        if key.startswith(_MARGIN):
            return self.margin.group(key.removeprefix(_MARGIN))
        learned = self._models.own(key.removeprefix(_POSTERIOR))
        return None if learned is None else learned.posterior.snapshot()

    def restore(self, groups: Groups) -> None:
        """Go on from these sums; others stay."""
        self.margin.restore(_without(_MARGIN, groups))
        for name, group in _without(_POSTERIOR, groups).items():
            learned = self._models.admit(name)
            if learned is not None:
                learned.posterior.restore(group)


def _without(prefix: str, groups: Groups) -> dict[str, DecayedSums]:
    return {
        key.removeprefix(prefix): group
        for key, group in groups.items()
        if key.startswith(prefix)
    }


def _point(learned: _Learned, features: Features) -> float:
    mean = learned.weights.total(features)
    return min(max(mean, _fewest_tokens(features)), _most_tokens(features))


def _bounded(features: Features, point: float, factor: float) -> Estimate:
    prompt_tokens = max(1, round(point))
    most = max(prompt_tokens, int(_most_tokens(features)))
    return Estimate(prompt_tokens, min(math.ceil(point * factor), most))


def _predict(learned: _Learned, features: Features, x: Vector) -> _Prediction:
    point = _point(learned, features)
    variance = learned.posterior.variance(x)
    noise = relative_variance(point)
    return _Prediction(point, math.sqrt(noise + variance / (point * point)))


def _fold(
    learned: _Learned, x: Vector, prompt_tokens: int, prediction: _Prediction
) -> None:
    error = abs(math.log(prompt_tokens / prediction.point))
    deviations = error / prediction.spread
    learned.error += _RECENT * (min(error, _CLIPPED_ERROR) - learned.error)
    clipped = min(deviations, _CLIPPED_DEVIATIONS)
    learned.surprise += _RECENT * (clipped - learned.surprise)
    # The larger of both sizes: a false count of 1 would else weigh as its square.
    size = max(prompt_tokens, prediction.point)
    variance = size * size * relative_variance(size)
    variance *= max(1.0, deviations / _ROBUST_DEVIATIONS) ** 2
    learned.posterior.learn(x, prompt_tokens, variance)


def _fewest_tokens(features: Features) -> float:
    # The longest tokens are runs of blanks, of 80 to 128 bytes.
    return max(1.0, (features.text_bytes + features.tools_bytes) / 128)


def _most_tokens(features: Features) -> float:
    # Byte-level vocabularies never take more than a token a byte of text; templates
    # add up to 35 tokens and 10 a message, and print tools with indentation.
    messages = 64.0 + 16.0 * features.messages
    return messages + features.text_bytes + 2.0 * features.tools_bytes
