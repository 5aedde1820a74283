"""Prometheus metrics computed from the configuration in force at each scrape.

These metrics take no time while a request is handled.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from extproc.routing.advice import Advice
from extproc.routing.models import AnyRouter
from extproc.server.in_force import Generation, InForce
from extproc.server.observe.advising import advise_now
from extproc.server.observe.counters import MODEL, without_empty_labels
from extproc.server.pools.watch import PoolStatus

_POOL_GAUGES: Sequence[tuple[str, str, Callable[[PoolStatus], float | None]]] = (
    (
        "endpoints",
        "Endpoints of the pool whose load is polled",
        lambda pool: pool.endpoints,
    ),
    (
        "healthy_endpoints",
        "Polled endpoints that respond and are healthy",
        lambda pool: pool.healthy,
    ),
    (
        "under_pressure",
        "1 while requests spill over to a larger pool",
        lambda pool: pool.under_pressure,
    ),
    (
        "waiting_requests",
        "Mean number of waiting requests per endpoint; absent if unknown",
        lambda pool: pool.waiting,
    ),
    (
        "kv_cache_usage",
        "Mean share of the KV cache in use, 0 to 1; absent if unknown",
        lambda pool: pool.kv_cache_usage,
    ),
    (
        "max_model_len_differs",
        "1 if an endpoint's max_model_len differs from the configured one",
        lambda pool: pool.max_model_len_differs,
    ),
)


class InForceCollector(Collector):
    """Collects ratios, pools, risk and advice of the generation in force.

    Args:
        in_force: holder of the generation, read at each scrape.
    """

    def __init__(self, in_force: InForce) -> None:
        self._in_force = in_force

    def collect(self) -> Iterator[Metric]:
        """Return every metric family; an unknown value has no sample."""
        now = self._in_force.now
        yield _ratios(now.router.ratios.all())
        yield from _pools(now)
        for family in (*_risk(now), *_advice(advise_now(now))):
            yield without_empty_labels(family)
        yield from _names(now.router)
        yield _body_limit(now)


def _ratios(ratios: Mapping[str, float]) -> GaugeMetricFamily:
    family = GaugeMetricFamily(
        "extproc_bytes_per_token",
        "Learned bytes of decoded text per token, by category",
        labels=["category"],
    )
    for category, ratio in sorted(ratios.items()):
        family.add_metric([category], ratio)
    return family


def _body_limit(generation: Generation) -> GaugeMetricFamily:
    limit = generation.gateway_limit.limit_bytes
    family = GaugeMetricFamily(
        "extproc_requested_body_limit_bytes",
        "Largest body requested from Envoy; below the configured limit after losses",
    )
    family.add_metric(
        [], generation.config.server.max_body_bytes if limit is None else limit
    )
    return family


def _pools(generation: Generation) -> Iterator[GaugeMetricFamily]:
    for name, text, read in _POOL_GAUGES:
        labels = ["pool", MODEL]
        family = GaugeMetricFamily(f"extproc_pool_{name}", text, labels=labels)
        for status in generation.watch.statuses():
            value, pool = read(status), generation.router.pool(status.name)
            if value is not None:
                model = "" if pool is None else pool.model
                family.add_metric([status.name, model], float(value))
        yield without_empty_labels(family)


def _risk(generation: Generation) -> Iterator[GaugeMetricFamily]:
    """Return the risk metrics, which have no sample if the estimator states no risk."""
    margin = generation.router.estimator.margin
    stated = GaugeMetricFamily(
        "extproc_stated_under_estimate_rate",
        "Share of prompts that may exceed their bound",
        labels=[MODEL],
    )
    achieved = GaugeMetricFamily(
        "extproc_achieved_under_estimate_rate",
        "Recent share of prompts that exceeded their bound",
        labels=[MODEL],
    )
    for router in generation.router.routers:
        model = router.model
        for family, value in (
            (stated, margin.rate_of(model)),
            (achieved, margin.achieved(model or None)),
        ):
            if value is not None:
                family.add_metric([model], value)
    yield from (stated, achieved)
    yield from _truncation(generation)


def _truncation(generation: Generation) -> Iterator[GaugeMetricFamily]:
    stated = GaugeMetricFamily(
        "extproc_stated_truncation_rate",
        "Share of answers that may exceed the output reserved under a limit",
        labels=[MODEL],
    )
    achieved = GaugeMetricFamily(
        "extproc_achieved_truncation_rate",
        "Recent share of answers that exceeded the output reserved under a limit",
        labels=[MODEL],
    )
    for router in generation.router.routers:
        declared, model = router.declared_allowance, router.model
        for family, value in (
            (stated, declared.risk_of(model)),
            (achieved, declared.achieved(model or None)),
        ):
            if value is not None:
                family.add_metric([model], value)
    yield from (stated, achieved)


def _advice(advice: Mapping[str, Advice | None]) -> Iterator[GaugeMetricFamily]:
    advised = GaugeMetricFamily(
        "extproc_advised_threshold_tokens",
        "Threshold of the smallest pool that would save the most",
        labels=[MODEL],
    )
    saving = GaugeMetricFamily(
        "extproc_threshold_saving_ratio",
        "Estimated share of a homogeneous fleet saved, at each threshold",
        labels=[MODEL, "threshold"],
    )
    exceeded = GaugeMetricFamily(
        "extproc_threshold_exceeded_ratio",
        "Share of observed requests routed as fitting the threshold that needed more",
        labels=[MODEL, "threshold"],
    )
    for model, given in advice.items():
        if given is None:
            continue
        advised.add_metric([model], given.best.threshold_tokens)
        for name, prospect in (("current", given.current), ("advised", given.best)):
            saving.add_metric([model, name], prospect.saving)
            if prospect.under_rate is not None:
                exceeded.add_metric([model, name], prospect.under_rate)
    yield from (advised, saving, exceeded)


def _names(router: AnyRouter) -> Iterator[Metric]:
    """Return the count of names learned separately, and the count of other lessons."""
    names = router.estimator.margin.names
    apart = GaugeMetricFamily(
        "extproc_models_learned_apart", "Model names that are learned separately"
    )
    shared = CounterMetricFamily(
        "extproc_shared_lessons",
        "Responses learned under names without a state of their own",
    )
    if names is not None:
        apart.add_metric([], len(names))
        shared.add_metric([], names.shared_touches)
    yield from (apart, shared)
