"""The default estimator: a linear model of text, learned online per served model.

Prompt tokens are modeled as linear in the terms of ``regressors.TERMS``. The
coefficients have the distribution of ``posterior.Posterior``: a prior from known
tokenizer families, updated by counted prompts, which are weighted by their size. The
predicted spread includes the posterior's uncertainty, so it is larger for unfamiliar
text.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, field
from functools import partial

import numpy as np

from extproc.routing.arrays import Vector
from extproc.routing.bounded_table import MODELS, BoundedTable
from extproc.routing.estimate import (
    EstimateTerms,
    Prediction,
    fewest_tokens,
    possible_tokens,
)
from extproc.routing.features import Features
from extproc.routing.mergeable import MEMORY, DecayedSums, Groups
from extproc.routing.posterior import Posterior
from extproc.routing.prior import Prior, known_families, relative_variance
from extproc.routing.regressors import TERMS, TERMS_CHECKSUM, VECTOR_TERMS
from extproc.routing.rendering import optional_tokens, with_shares
from extproc.routing.trial import Trial

# Errors beyond ``_ROBUST_DEVIATIONS`` expected deviations lose weight in proportion to
# their square: a count that is wrong by a factor of ten then pulls less than a correct
# one at the limit. Such errors keep their weight if those in one direction outnumber
# the other errors of their category by ``_BELIEVED_SURPRISES``, because the text is
# then of a new kind.
_ROBUST_DEVIATIONS = 4.0
_BELIEVED_SURPRISES = 3

# The posterior is solved immediately after an error beyond this many deviations, or
# beyond this logarithm, unless it was solved for another such error during the last
# ``_BETWEEN_SURPRISES`` observations. Otherwise, a settled posterior would be solved
# too rarely for the first prompts in a new script.
_SURPRISING_DEVIATIONS = 3.0
_SURPRISING_ERROR = 0.3
_BETWEEN_SURPRISES = 8

# Weight of the newest error in the running mean of errors.
_RECENT = 1 / 16
_CLIPPED_DEVIATIONS = 6.0

# If the mean recent error of a model, in expected deviations (0.8 for normal errors),
# is this large, a different model may now be behind the name. A challenger then learns
# beside the current one from the prior alone, until it wins its trial, the errors are
# small again, or the trial reaches its limit. A replaced model stays in the trial as a
# challenger.
_SURPRISE = 1.5
_CALM = 1.1
# Number of observations after which a model is familiar with a category.
_FAMILIAR = 20

# Number of observations during which the prior's coefficients apply to optional text.
_PRICED_BY_PRIOR = 30.0

_TERMS_EXPLAINED = 24


@dataclass(slots=True)
class _Learned:
    """The state learned from one served model's counted prompts."""

    posterior: Posterior
    prior_prices: Vector
    """Tokens per term according to the prior."""
    surprise: float = 0.8
    """Mean recent error, in expected deviations."""
    categories: Counter[str] = field(default_factory=Counter)
    """Observations by category."""
    surprises: dict[str, int] = field(default_factory=dict)
    """A count for each category. A surprising underestimate adds 1, a surprising
    overestimate subtracts 1, and any other error moves the count towards 0."""
    last_surprise: int = -_BETWEEN_SURPRISES
    challenger: _Challenger | None = None

    def vectorize(self, features: Features) -> Vector:
        """Return the counts of ``VECTOR_TERMS``; the count of a share is in tokens."""
        if not features.optional:
            return features.terms
        vector = features.terms.copy()
        vector[len(TERMS) :] = optional_tokens(features, self._prices)
        return vector

    def linearize(self, features: Features) -> tuple[Vector, float]:
        """Return the vector to learn from, and the tokens to subtract from its product.

        The tokens of optional text, ``share * (terms . coefficients)``, are linear in
        each factor alone. Around the current values of both, ``s`` and ``w``, they are
        approximately ``s * (terms . coefficients) + (share - s) * (terms . w)``. So the
        terms of optional text are added with weight ``s`` to those of other text, and
        update the same coefficients.
        """
        if not features.optional:
            return features.terms, 0.0
        vector = self.vectorize(features)
        if self._is_new:
            return vector, 0.0
        shares = np.clip(self.posterior.mean[len(TERMS) :], 0.0, 1.0)
        excess = float(shares @ vector[len(TERMS) :])
        for part in features.optional:
            vector += shares[part.kind] * part.terms
        return vector, excess

    @property
    def _is_new(self) -> bool:
        return self.posterior.observed < _PRICED_BY_PRIOR

    @property
    def _prices(self) -> Vector:
        """Return the tokens per term of optional text.

        At first they are those of the prior. With coefficients that are still being
        learned, the shares and the coefficients would follow each other.
        """
        return self.prior_prices if self._is_new else self.posterior.mean


@dataclass(slots=True)
class _Challenger:
    learned: _Learned
    trial: Trial
    deposed: bool = False
    """Whether this model was the incumbent before."""


def _start(prior: Prior) -> _Learned:
    return _Learned(Posterior(prior, MEMORY), prior.mean)


class TextEstimator:
    """The estimator of prompt tokens from text features.

    Not thread-safe.

    Args:
        prior: the distribution of a model's coefficients before its first answer.
        models: number of served models to learn separately.
    """

    name = "text"
    component = f"text.3.{TERMS_CHECKSUM:08x}"

    def __init__(self, prior: Prior | None = None, *, models: int = MODELS) -> None:
        # A bound method would create a reference cycle, and the estimator's matrices
        # would stay in memory until the next garbage collection.
        self._start = partial(_start, with_shares(prior or known_families()))
        self._models = BoundedTable(self._start, models)
        self._untaught = self._start()

    def predict(self, model: str, category: str, features: Features) -> Prediction:
        """Estimate the prompt tokens of a request for a served model."""
        learned = self._of(model)
        return _predict(learned, features, *learned.linearize(features))[0]

    def continued(self, model: str, category: str, features: Features) -> Prediction:
        """Estimate the tokens that further messages add to a prompt."""
        learned = self._of(model)
        x = learned.vectorize(features)
        x = np.append(0.0, x[1:])  # the template is already counted
        tokens = max(float(x.dot(learned.posterior.mean)), fewest_tokens(features))
        variance = learned.posterior.variance(x)
        noise = relative_variance(tokens)
        return Prediction(tokens, math.sqrt(noise + variance / (tokens * tokens)))

    def point(self, model: str, category: str, features: Features) -> float:
        """Return the point estimate."""
        learned = self._of(model)
        return _point(learned, features, *learned.linearize(features))

    def _of(self, model: str) -> _Learned:
        return self._models.get(model) or self._untaught

    def observe(
        self, model: str, category: str, features: Features, prompt_tokens: int
    ) -> Prediction:
        """Learn from one counted prompt (``prompt_tokens`` > 0)."""
        learned = self._models.touch(model)
        x, excess = learned.linearize(features)
        prediction, variance = _predict(learned, features, x, excess)
        _learn(learned, category, x, excess, prompt_tokens, prediction, variance)
        self._challenge(learned, category, features, prompt_tokens, prediction)
        return prediction

    def explain(self, model: str, category: str, features: Features) -> EstimateTerms:
        """Return the terms with the most tokens."""
        learned = self._of(model)
        mean = learned.posterior.mean
        x = learned.vectorize(features)
        tokens = x * mean
        heaviest = np.argsort(-np.abs(tokens))[:_TERMS_EXPLAINED]
        return {
            "formula": "sum of the terms' count * tokens_each",
            "learned": learned is not self._untaught,
            "observed": round(learned.posterior.observed, 1),
            "terms": {
                VECTOR_TERMS[i]: {
                    "count": float(x[i]),
                    "tokens_each": float(mean[i]),
                    "tokens": float(tokens[i]),
                }
                for i in heaviest.tolist()
                if x[i]
            },
        }

    def _challenge(
        self,
        learned: _Learned,
        category: str,
        features: Features,
        prompt_tokens: int,
        prediction: Prediction,
    ) -> None:
        challenger = learned.challenger
        if challenger is None:
            if learned.surprise > _SURPRISE:
                learned.challenger = _Challenger(self._start(), _trial_of(learned))
            return
        x, excess = challenger.learned.linearize(features)
        other, variance = _predict(challenger.learned, features, x, excess)
        _learn(challenger.learned, category, x, excess, prompt_tokens, other, variance)
        challenger.trial.add(
            category, _error(prompt_tokens, prediction), _error(prompt_tokens, other)
        )
        if challenger.trial.won:
            _swap(learned, challenger)
        elif challenger.trial.over or (
            learned.surprise < _CALM and not challenger.deposed
        ):
            learned.challenger = None

    def group_keys(self) -> list[str]:
        """Return the names of the models."""
        return [name for name, _ in self._models.items()]

    def group(self, key: str) -> DecayedSums | None:
        """Return a copy of a model's sums, or None if it has none."""
        learned = self._models.own(key)
        return None if learned is None else learned.posterior.snapshot()

    def restore(self, groups: Groups) -> None:
        """Replace the sums of these groups; leave all others unchanged."""
        for name, group in groups.items():
            learned = self._models.admit(name)
            if learned is not None:
                learned.posterior.restore(group)


def _point(learned: _Learned, features: Features, x: Vector, excess: float) -> float:
    tokens = float(x.dot(learned.posterior.mean)) - excess
    return possible_tokens(features, tokens)


def _predict(
    learned: _Learned, features: Features, x: Vector, excess: float
) -> tuple[Prediction, float]:
    """Return the prediction, and the variance of the mean under the wide prior."""
    point = _point(learned, features, x, excess)
    noise = relative_variance(point)
    learning = learned.posterior.variance(x)
    variance = learned.posterior.narrowed(x, learning)
    # The predictive variance relative to the point estimate: the variance of the
    # observation's noise plus that of the mean (Bishop 2006, 3.59).
    spread = math.sqrt(noise + variance / (point * point))
    return Prediction(point, spread), learning


def _error(prompt_tokens: int, prediction: Prediction) -> float:
    return abs(math.log(prompt_tokens / prediction.tokens))


def _trial_of(incumbent: _Learned) -> Trial:
    categories = incumbent.categories.items()
    return Trial({name for name, times in categories if times >= _FAMILIAR})


def _swap(learned: _Learned, challenger: _Challenger) -> None:
    """Replace the incumbent by the challenger; the incumbent may return later."""
    winner = challenger.learned
    winner.posterior.epoch = learned.posterior.epoch + 1
    deposed = _Learned(
        learned.posterior, learned.prior_prices, categories=learned.categories
    )
    learned.posterior = winner.posterior
    learned.surprise = winner.surprise
    learned.categories = winner.categories
    learned.surprises = winner.surprises
    learned.challenger = (
        None
        if challenger.deposed
        else _Challenger(deposed, _trial_of(deposed), deposed=True)
    )


def _learn(
    learned: _Learned,
    category: str,
    x: Vector,
    excess: float,
    prompt_tokens: int,
    prediction: Prediction,
    variance: float,
) -> None:
    error = math.log(prompt_tokens / prediction.tokens)
    # Use the learning posterior's variance, not the narrower one for prediction: a
    # correct count of unfamiliar text must not look like a false one.
    point = prediction.tokens
    expected = relative_variance(point) + variance / (point * point)
    deviations = abs(error) / math.sqrt(expected)
    clipped = min(deviations, _CLIPPED_DEVIATIONS)
    learned.surprise += _RECENT * (clipped - learned.surprise)
    learned.categories[category] += 1
    # Use the larger of the two sizes. Otherwise, a false count of 1 would have almost
    # no noise, and so a very large weight.
    size = max(prompt_tokens, prediction.tokens)
    noise = size * size * relative_variance(size)
    if not _believed(learned, category, error, deviations):
        noise *= (deviations / _ROBUST_DEVIATIONS) ** 2
    learned.posterior.learn(x, prompt_tokens + excess, noise)
    if deviations > _SURPRISING_DEVIATIONS or abs(error) > _SURPRISING_ERROR:
        observations = learned.posterior.observations
        if observations - learned.last_surprise >= _BETWEEN_SURPRISES:
            learned.last_surprise = observations
            learned.posterior.solve()


def _believed(
    learned: _Learned, category: str, error: float, deviations: float
) -> bool:
    """Record an error, and return whether its prompt has its full weight."""
    surprises = learned.surprises.get(category, 0)
    if deviations <= _ROBUST_DEVIATIONS:
        if surprises:
            learned.surprises[category] = surprises - (1 if surprises > 0 else -1)
        return True
    surprises += 1 if error > 0 else -1
    limit = 2 * _BELIEVED_SURPRISES
    learned.surprises[category] = min(max(surprises, -limit), limit)
    same_sign = surprises if error > 0 else -surprises
    return same_sign >= _BELIEVED_SURPRISES
