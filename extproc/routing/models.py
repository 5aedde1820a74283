"""Several base models behind one router, with separate pools and shared learners.

Clients request a base model by its own name or by that of an adapter. A name is first
compared with the configured names, then with the names that the pools' servers list,
and then with the patterns. All requests for one base model are learned together,
whichever name they use.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from fnmatch import translate

from msgspec.structs import replace

from extproc.routing.bound import Bounded
from extproc.routing.decision import OTHER_MODEL, Decision, Outcome
from extproc.routing.mergeable import Mergeable
from extproc.routing.policy import Pool
from extproc.routing.ratio import TextRatios
from extproc.routing.request import Request
from extproc.routing.router import Lesson, Router

NO_NAMES: Mapping[str, str] = {}

_PATTERN = re.compile(r"[*?\[]")


def is_pattern(name: str) -> bool:
    """Return whether an adapter's name is a glob pattern (``*``, ``?``, ``[...]``)."""
    return _PATTERN.search(name) is not None


def as_base(request: Request, bases: Mapping[str, str]) -> Request:
    """Return the request with the name of its base model, the key for learning.

    Args:
        request: names a base model, an alias of one, or an adapter.
        bases: base model by name, as listed by the pools' servers.
    """
    base = bases.get(request.model)
    return replace(request, model=base) if base else request


class ModelRouter:
    """Finds the router for the model that a request names.

    Args:
        routers: one for each base model; they share estimator, ratios and allowance.
            Names of models and of pools are unique.
        adapters: pairs of another name (exact, or a glob pattern) and its base model;
            the first matching pattern wins.
        unknown: router for unknown names; if None, requests with such names are not
            routed.

    Raises:
        ValueError: no router, or a name used twice.
    """

    def __init__(
        self,
        routers: Sequence[Router],
        adapters: Sequence[tuple[str, str]] = (),
        unknown: Router | None = None,
    ) -> None:
        if not routers:
            raise ValueError("routers: none; expected at least one")
        self.routers = tuple(routers)
        self.unknown = unknown
        self._exact = {router.model: router for router in routers}
        exact = [(name, base) for name, base in adapters if not is_pattern(name)]
        names = [*self._exact, *(name for name, _ in exact)]
        pools = [pool.name for router in routers for pool in router.policy.pools]
        for given in (names, pools):
            twice = {name for name in given if given.count(name) > 1}
            if twice:
                raise ValueError(
                    f"models: {min(twice)!r} appears twice; expected unique names"
                )
        self._patterns = [
            (re.compile(translate(name)), self._exact[base])
            for name, base in adapters
            if is_pattern(name)
        ]
        self._exact |= {name: self._exact[base] for name, base in exact}
        self._by_pool = {
            pool.name: router for router in routers for pool in router.policy.pools
        }

    def find(self, name: str, served: Mapping[str, str] = NO_NAMES) -> Router | None:
        """Return the router for a model name, or None if the request is not routed.

        Args:
            name: as the client sent it; empty if it sent none.
            served: for each model name that a server reports, the name of the server's
                pool.
        """
        return self.find_known(name, served) or self.unknown

    def find_known(
        self, name: str, served: Mapping[str, str] = NO_NAMES
    ) -> Router | None:
        """Return the router of a configured model, or None."""
        router = self._exact.get(name)
        if router is not None:
            return router
        pool = served.get(name)
        if pool is not None and pool in self._by_pool:
            return self._by_pool[pool]
        if name:
            for pattern, router in self._patterns:
                if pattern.match(name):
                    return router
        return None

    def of_pool(self, pool: Pool) -> Router:
        """Return the router of a pool, or the first router if the pool is unknown."""
        return self._by_pool.get(pool.name, self.routers[0])

    def pool(self, name: str) -> Pool | None:
        """Return the pool with a name, or None."""
        router = self._by_pool.get(name)
        return None if router is None else router.pool(name)

    def learn(self, decision: Decision, outcome: Outcome) -> Lesson:
        """Learn from one response; see ``Router.learn``."""
        if self.unknown is not None and decision.model == OTHER_MODEL:
            return self.unknown.learn(decision, outcome)
        return self.of_pool(decision.pool).learn(decision, outcome)

    @property
    def models(self) -> list[str]:
        """The names of the base models."""
        return [router.model for router in self.routers]

    @property
    def estimator(self) -> Bounded:
        """The estimator of all models."""
        return self.routers[0].estimator

    @property
    def ratios(self) -> TextRatios:
        """The ratios of all models."""
        return self.routers[0].ratios

    @property
    def hints(self) -> Collection[str]:
        """The hints that name a category, in addition to the built-in ones."""
        return self.routers[0].hints

    @property
    def categories(self) -> list[str]:
        """Every category that a decision can name."""
        return self.routers[0].categories

    @property
    def learners(self) -> list[Mergeable]:
        """Every learner, to be saved and shared."""
        return self.routers[0].learners


AnyRouter = Router | ModelRouter
"""A router of either kind: one for every name, or one for each base model."""
