"""A configuration in force, built from the parts that a test checks."""

from collections.abc import Callable, Mapping

from extproc.config import Config
from extproc.exchange.feedback import FeedbackSampler
from extproc.exchange.gateway_limit import GatewayLimit
from extproc.exchange.settings import ExchangeSettings
from extproc.routing.advice import budget_counts
from extproc.routing.models import AnyRouter
from extproc.routing.policy import PoolLoad
from extproc.routing.router import Router
from extproc.server.build import build_router, build_sampler
from extproc.server.in_force import Generation, InForce
from extproc.server.pools.watch import LoadWatch


def make_router(config: Config | None = None) -> Router:
    """Return the router of a configuration whose pools serve one model."""
    (router,) = build_router(config or Config()).routers
    return router


class FixedLoads(LoadWatch):
    """A watch that reports fixed loads."""

    def __init__(self, loads: Callable[[], Mapping[str, PoolLoad]]) -> None:
        super().__init__((), Config().load)
        self._fixed = loads

    def current(self) -> Mapping[str, PoolLoad]:
        return self._fixed()


def make_generation(
    router: AnyRouter | None = None,
    *,
    config: Config | None = None,
    settings: ExchangeSettings | None = None,
    sampler: FeedbackSampler | None = None,
    loads: Callable[[], Mapping[str, PoolLoad]] = dict,
) -> Generation:
    """Return the generation for ``config``, with the given parts replaced."""
    config = config or Config()
    router = router or build_router(config)
    return Generation(
        config,
        router,
        sampler or build_sampler(config.feedback, router),
        settings or ExchangeSettings(),
        FixedLoads(loads),
        {each.model: budget_counts(each.policy) for each in router.routers},
        GatewayLimit(config.server.max_body_bytes),
    )


def make_in_force(
    router: AnyRouter | None = None,
    *,
    config: Config | None = None,
    settings: ExchangeSettings | None = None,
    sampler: FeedbackSampler | None = None,
    loads: Callable[[], Mapping[str, PoolLoad]] = dict,
) -> InForce:
    """Return a configuration in force, with the given parts replaced."""
    return InForce(
        make_generation(
            router, config=config, settings=settings, sampler=sampler, loads=loads
        )
    )
