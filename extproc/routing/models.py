"""Several base models behind one router: each has its own pools, all share what learns.

Clients ask for a base model by its own name or by an adapter's. A name is looked up
exactly, then among the names that the pools' servers list, then by pattern. Requests
for one base are learned as one, whichever of its names they use.
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
    """Whether a name of an adapter is a glob pattern (``*``, ``?``, ``[...]``)."""
    return _PATTERN.search(name) is not None


def as_base(request: Request, bases: Mapping[str, str]) -> Request:
    """Return the request under the name of its base model, to be learned as that.

    Args:
        request: names a base model, an alias of one, or an adapter.
        bases: by name the base, as far as the pools' servers list them.
    """
    base = bases.get(request.model)
    return replace(request, model=base) if base else request


class ModelRouter:
    """Finds the router of the model that a request asks for.

    Args:
        routers: one for each base model; they share estimator, ratios and allowance.
            Names of models and of pools are unique.
        adapters: other names of a base, exact or glob patterns, and the base; the
            first pattern that matches counts.
        unknown: routes names that no model has; None: they are not routed.

    Raises:
        ValueError: no router, or a name given twice.
    """

    def __init__(
        self,
        routers: Sequence[Router],
        adapters: Sequence[tuple[str, str]] = (),
        unknown: Router | None = None,
    ) -> None:
        if not routers:
            raise ValueError("at least one model is needed")
        self.routers = tuple(routers)
        self.unknown = unknown
        self._exact = {router.model: router for router in routers}
        exact = [(name, base) for name, base in adapters if not is_pattern(name)]
        names = [*self._exact, *(name for name, _ in exact)]
        pools = [pool.name for router in routers for pool in router.policy.pools]
        for given in (names, pools):
            twice = {name for name in given if given.count(name) > 1}
            if twice:
                raise ValueError(f"{min(twice)!r} is given twice")
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
        """Return the router of a model's name; None: the request is not routed.

        Args:
            name: as the client wrote it; empty if it gave none.
            served: names that the pools' servers list, and the pool of the server.
        """
        return self.find_known(name, served) or self.unknown

    def find_known(
        self, name: str, served: Mapping[str, str] = NO_NAMES
    ) -> Router | None:
        """Return the router of a model that is configured, or None."""
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
        """Return the router whose pool it is; the first one's for a pool of none."""
        return self._by_pool.get(pool.name, self.routers[0])

    def pool(self, name: str) -> Pool | None:
        """Return the pool of a name."""
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
        """The hints that name a category, beside the built-in ones."""
        return self.routers[0].hints

    @property
    def categories(self) -> list[str]:
        """Every category that a decision can name."""
        return self.routers[0].categories

    @property
    def learners(self) -> list[Mergeable]:
        """Everything that learns, to be kept and shared."""
        return self.routers[0].learners


AnyRouter = Router | ModelRouter
"""What decides: one router for every name, or one for each base model."""
