"""The Prometheus metrics that are read from the configuration in force when scraped.

A request costs them nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from extproc.routing.advice import Advice
from extproc.server.in_force import Generation, InForce
from extproc.server.observe.advising import advise_now
from extproc.server.pools.watch import PoolStatus

_POOL_GAUGES: Sequence[tuple[str, str, Callable[[PoolStatus], float | None]]] = (
    (
        "endpoints",
        "Endpoints of the pool that are asked for their load",
        lambda pool: pool.endpoints,
    ),
    (
        "healthy_endpoints",
        "Of those, the ones that answer",
        lambda pool: pool.healthy,
    ),
    (
        "under_pressure",
        "1 while requests spill to a larger pool",
        lambda pool: pool.under_pressure,
    ),
    (
        "waiting_requests",
        "Mean queue of an endpoint; absent if not known",
        lambda pool: pool.waiting,
    ),
    (
        "kv_cache_usage",
        "Mean share in use, 0 to 1; absent if not known",
        lambda pool: pool.kv_cache_usage,
    ),
    (
        "max_model_len_differs",
        "1 if an endpoint's is not the configured",
        lambda pool: pool.max_model_len_differs,
    ),
)


class InForceCollector(Collector):
    """Reads the generation in force: its ratios, pools, risk and advice.

    Args:
        in_force: asked at each scrape.
    """

    def __init__(self, in_force: InForce) -> None:
        self._in_force = in_force

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """Every family, with no sample for what is not known yet."""
        now = self._in_force.now
        yield _ratios(now.router.ratios.all())
        yield from _pools(now.watch.statuses())
        yield from _risk(now)
        yield from _advice(advise_now(now))


def _ratios(ratios: Mapping[str, float]) -> GaugeMetricFamily:
    family = GaugeMetricFamily(
        "extproc_bytes_per_token",
        "Learned bytes of decoded text per token, by category",
        labels=["category"],
    )
    for category, ratio in sorted(ratios.items()):
        family.add_metric([category], ratio)
    return family


def _pools(pools: Sequence[PoolStatus]) -> Iterator[GaugeMetricFamily]:
    for name, text, read in _POOL_GAUGES:
        family = GaugeMetricFamily(f"extproc_pool_{name}", text, labels=["pool"])
        for pool in pools:
            value = read(pool)
            if value is not None:
                family.add_metric([pool.name], float(value))
        yield family


def _risk(generation: Generation) -> Iterator[GaugeMetricFamily]:
    """Give no sample for an estimator that states no risk."""
    margin = generation.router.estimator.margin
    for name, text, value in (
        ("stated", "Share of prompts that may exceed their bound", margin.rate),
        ("achieved", "Recent share of prompts above their bound", margin.achieved()),
    ):
        family = GaugeMetricFamily(f"extproc_{name}_under_estimate_rate", text)
        if value is not None:
            family.add_metric([], value)
        yield family


def _advice(advice: Advice | None) -> Iterator[GaugeMetricFamily]:
    labels = ["threshold"]
    advised = GaugeMetricFamily(
        "extproc_advised_threshold_tokens",
        "The smallest pool's threshold that would save most",
    )
    saving = GaugeMetricFamily(
        "extproc_threshold_saving_ratio",
        "Share of a homogeneous fleet saved, estimated, current or advised",
        labels=labels,
    )
    exceeded = GaugeMetricFamily(
        "extproc_threshold_exceeded_ratio",
        "Share of observed requests held to fit the threshold that needed more",
        labels=labels,
    )
    if advice is not None:
        advised.add_metric([], advice.best.threshold_tokens)
        for name, prospect in (
            ("current", advice.current),
            ("advised", advice.best),
        ):
            saving.add_metric([name], prospect.saving)
            if prospect.under_rate is not None:
                exceeded.add_metric([name], prospect.under_rate)
    yield from (advised, saving, exceeded)
