"""Merges the metrics and reports of several workers, as if one server made them.

Counters and histograms are added and never decrease, because Prometheus treats a
decrease as a restart and would count all events again. The last known counts of an
ended worker therefore stay in the sums. Gauges get a label for the worker, as replicas
have a label for the instance.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from operator import mul

from msgspec import UNSET, UnsetType
from msgspec.structs import replace
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector

from extproc.routing.advice import Advice
from extproc.server.observe.recent import LAST_DECISIONS
from extproc.server.observe.report import (
    BodiesReport,
    BudgetsReport,
    CategoryReport,
    IntervalReport,
    ModelReport,
    PoolReport,
    RiskReport,
    RouterReport,
    StatusReport,
)
from extproc.server.observe.timeline import INTERVALS

_SUMMED_GAUGES = frozenset({"extproc_streams_inflight"})
_SAME_GAUGES = frozenset({"extproc_build_info"})
_CUMULATIVE = frozenset({"counter", "histogram"})

_Labels = tuple[tuple[str, str], ...]
_Key = tuple[str, str, _Labels]
"""Family name, sample name and labels."""


class MergedMetrics(Collector):
    """The merged metrics of all workers.

    Args:
        workers: number of workers.
    """

    def __init__(self, workers: int) -> None:
        self._kinds: dict[str, tuple[str, str]] = {}
        self._known: list[dict[_Key, float]] = [{} for _ in range(workers)]
        self._ended: dict[_Key, float] = {}
        self._up = [False] * workers
        self._restarts = [0] * workers
        self._registry = CollectorRegistry()
        self._registry.register(self)

    def take(self, worker: int, text: str | None) -> None:
        """Record a worker's /metrics; ``text`` is None if the worker did not answer."""
        self._up[worker] = text is not None
        known = self._known[worker]
        if text is None:
            # Keep the worker's counts until it answers again, and drop its gauges.
            self._known[worker] = {k: v for k, v in known.items() if self._adds_up(k)}
            return
        self._known[worker] = self._read(text)

    def restarted(self, worker: int) -> None:
        """Keep the counts of a worker that is being restarted."""
        for key, value in self._known[worker].items():
            if self._adds_up(key):
                self._ended[key] = self._ended.get(key, 0.0) + value
        self._known[worker] = {}
        self._restarts[worker] += 1

    def render(self) -> bytes:
        """Render all metrics in Prometheus' text format."""
        return generate_latest(self._registry)

    def _read(self, text: str) -> dict[_Key, float]:
        values: dict[_Key, float] = {}
        for family in text_string_to_metric_families(text):
            if family.name.endswith("_created"):
                continue  # a sum has no single start time
            self._kinds[family.name] = (family.type, family.documentation)
            for sample in family.samples:
                labels = tuple(sorted(sample.labels.items()))
                values[family.name, sample.name, labels] = sample.value
        return values

    def _adds_up(self, key: _Key) -> bool:
        return self._kinds[key[0]][0] in _CUMULATIVE

    def collect(self) -> Iterator[Metric]:
        """Return every family once, and the state of the workers."""
        families = {
            name: Metric(name, documentation, kind)
            for name, (kind, documentation) in sorted(self._kinds.items())
        }
        for (name, sample, labels), value in sorted(self._merge().items(), key=_order):
            families[name].add_sample(sample, dict(labels), value)
        yield from families.values()
        up = GaugeMetricFamily(
            "extproc_worker_up", "1 while a worker answers", labels=["worker"]
        )
        restarts = CounterMetricFamily(
            "extproc_worker_restarts", "Worker restarts", labels=["worker"]
        )
        for worker, (is_up, count) in enumerate(
            zip(self._up, self._restarts, strict=True)
        ):
            up.add_metric([str(worker)], is_up)
            restarts.add_metric([str(worker)], count)
        yield up
        yield restarts

    def _merge(self) -> dict[_Key, float]:
        merged = dict(self._ended)
        for worker, known in enumerate(self._known):
            for key, value in known.items():
                name, sample, labels = key
                if self._adds_up(key) or name in _SUMMED_GAUGES:
                    merged[key] = merged.get(key, 0.0) + value
                elif name in _SAME_GAUGES:
                    merged[key] = value
                else:
                    own = (*labels, ("worker", str(worker)))
                    merged[name, sample, own] = value
        return merged


def _order(item: tuple[_Key, float]) -> tuple[str, list[tuple[str, str]], str, float]:
    (name, sample, labels), _ = item
    rest = [label for label in labels if label[0] != "le"]
    bound = dict(labels).get("le")
    return name, rest, sample, 0.0 if bound is None else float(bound)


def merge_reports(reports: Sequence[StatusReport]) -> StatusReport:
    """Merge the reports of several workers into one.

    Args:
        reports: the reports of the workers, at least one.
    """
    decisions = sum(report.decisions for report in reports)
    return replace(
        reports[0],
        ready=all(report.ready for report in reports),
        uptime_s=max(report.uptime_s for report in reports),
        decisions=decisions,
        # All workers have the same pools, except briefly during a reload.
        pools=[
            _merge_pools(pools, decisions)
            for pools in zip(*(report.pools for report in reports), strict=False)
        ],
        reasons=_sums(report.reasons for report in reports),
        categories=_merge_categories([report.categories for report in reports]),
        bytes_per_token=_merge_ratios(reports),
        risk=_merge_risks([report.risk for report in reports]),
        observations=_sums(report.observations for report in reports),
        misroutes=_sums(report.misroutes for report in reports),
        overflow_retries=sum(report.overflow_retries for report in reports),
        budgets=_merge_budgets([report.budgets for report in reports]),
        advice=_merge_advice([report.advice for report in reports]),
        router=_merge_routers([report.router for report in reports]),
        bodies=_merge_bodies([report.bodies for report in reports]),
        intervals=_merge_intervals([report.intervals for report in reports]),
        models=_merge_models([report.models or () for report in reports], decisions),
        last_decisions=sorted(
            (each for report in reports for each in report.last_decisions),
            key=lambda decision: -decision.time_s,
        )[:LAST_DECISIONS],
    )


def _merge_routers(routers: Sequence[RouterReport]) -> RouterReport:
    """Add the counts; use the quantiles of the slowest worker."""
    return RouterReport(
        streams=sum(each.streams for each in routers),
        faults=sum(each.faults for each in routers),
        protocol_errors=sum(each.protocol_errors for each in routers),
        p50_s=_largest(each.p50_s for each in routers),
        p99_s=_largest(each.p99_s for each in routers),
    )


def _merge_bodies(bodies: Sequence[BodiesReport]) -> BodiesReport:
    """Add counts; use the smallest limit that any worker has learned."""
    return BodiesReport(
        lost=sum(each.lost for each in bodies),
        requested_bytes=min(each.requested_bytes for each in bodies),
        limited=any(each.limited for each in bodies),
    )


def _merge_intervals(
    lists: Sequence[Sequence[IntervalReport]],
) -> list[IntervalReport]:
    """Add the intervals that end at the same time."""
    by_time: dict[float, list[IntervalReport]] = {}
    for intervals in lists:
        for each in intervals:
            by_time.setdefault(each.time_s, []).append(each)
    return [
        IntervalReport(
            time_s=time_s,
            pools=_sums(each.pools for each in same),
            spilled=sum(each.spilled for each in same),
            failed_open=sum(each.failed_open for each in same),
            observed=sum(each.observed for each in same),
            absolute_error=sum(each.absolute_error for each in same),
            exceeded=sum(each.exceeded for each in same),
            p50_s=_largest(each.p50_s for each in same),
            p99_s=_largest(each.p99_s for each in same),
        )
        for time_s, same in sorted(by_time.items())[-INTERVALS:]
    ]


def _largest(values: Iterable[float | None]) -> float | None:
    return max((each for each in values if each is not None), default=None)


def _merge_budgets(budgets: Sequence[BudgetsReport]) -> BudgetsReport:
    """Average shares, weighted by requests.

    Only reports with the same thresholds as the first report are used. All workers have
    the same pools, except briefly during a reload.
    """
    thresholds = budgets[0].thresholds
    alike = [each for each in budgets if each.thresholds == thresholds]
    requests = sum(each.requests for each in alike)
    weights = [each.requests for each in alike]
    return BudgetsReport(
        thresholds,
        _weighed_means([each.shares for each in alike], weights),
        requests,
        # The shares of tokens are also weighted by requests, since workers get equal
        # traffic and do not report sums of tokens.
        _weighed_means([each.token_shares for each in alike], weights),
    )


def _weighed_means(
    rows: Sequence[Sequence[float]], weights: Sequence[float]
) -> list[float]:
    total = sum(weights)
    return [
        sum(map(mul, column, weights)) / total if total else 0.0
        for column in zip(*rows, strict=True)
    ]


def _merge_advice(advices: Sequence[Advice | None]) -> Advice | None:
    """Return the advice of the worker with the most requests."""
    given = [advice for advice in advices if advice is not None]
    if not given:
        return None
    busiest = max(given, key=lambda advice: advice.requests)
    requests = sum(advice.requests for advice in given)
    return dataclasses.replace(busiest, requests=requests)


def _sums(tables: Iterable[Mapping[str, int]]) -> Mapping[str, int]:
    total: Counter[str] = Counter()
    for table in tables:
        total.update(table)
    return total


def _merge_pools(pools: Sequence[PoolReport], decisions: int) -> PoolReport:
    here = sum(pool.decisions for pool in pools)
    return replace(
        pools[0],
        decisions=here,
        share=here / decisions if decisions else None,
        available=any(pool.available for pool in pools),
        under_pressure=any(pool.under_pressure for pool in pools),
    )


def _merge_categories(
    tables: Sequence[Mapping[str, CategoryReport]],
) -> Mapping[str, CategoryReport]:
    return {
        name: _merge_category([table[name] for table in tables if name in table])
        for name in sorted({name for table in tables for name in table})
    }


def _merge_category(categories: Sequence[CategoryReport]) -> CategoryReport:
    """Add counts, average errors by count, and use the busiest worker's curves.

    Learned state is shared, so the workers' curves are nearly the same.
    """
    merged = replace(
        max(categories, key=_observed),
        decisions=sum(each.decisions for each in categories),
    )
    learned = [each for each in categories if _observed(each)]
    if not learned:
        return merged
    return replace(
        merged,
        observed=sum(map(_observed, learned)),
        mean_absolute_error=_mean(learned, lambda each: each.mean_absolute_error),
        bias=_mean(learned, lambda each: each.bias),
    )


def _mean(
    categories: Sequence[CategoryReport],
    read: Callable[[CategoryReport], float | UnsetType | None],
) -> float:
    """Return the mean of a value, weighted by the number of observed responses."""
    weighed = ((read(each) or 0.0) * _observed(each) for each in categories)
    return sum(weighed) / sum(map(_observed, categories))


def _observed(category: CategoryReport | None) -> int:
    if category is None or category.observed is UNSET:
        return 0
    return category.observed


def _merge_ratios(reports: Sequence[StatusReport]) -> Mapping[str, float]:
    """Return each category's ratio from the worker that has most of its responses."""
    ratios: dict[str, float] = {}
    most: dict[str, int] = {}
    for report in reports:
        for name, ratio in report.bytes_per_token.items():
            observed = _observed(report.categories.get(name))
            if name not in ratios or observed > most[name]:
                ratios[name], most[name] = ratio, observed
    return dict(sorted(ratios.items()))


def _merge_models(
    tables: Sequence[Sequence[ModelReport]], decisions: int
) -> list[ModelReport] | UnsetType:
    by_name: dict[str, list[ModelReport]] = {}
    for table in tables:
        for model in table:
            by_name.setdefault(model.name, []).append(model)
    return [_merge_model(models, decisions) for models in by_name.values()] or UNSET


def _merge_model(models: Sequence[ModelReport], decisions: int) -> ModelReport:
    """Add counts, and average errors weighted by the number of observed responses."""
    here = sum(model.decisions for model in models)
    observed = sum(model.observed for model in models)
    errors = [model for model in models if model.observed]
    error = sum((m.mean_absolute_error or 0.0) * m.observed for m in errors)
    bias = sum((m.bias or 0.0) * m.observed for m in errors)
    return replace(
        models[0],
        decisions=here,
        share=here / decisions if decisions else None,
        observed=observed,
        mean_absolute_error=error / observed if observed else None,
        bias=bias / observed if observed else None,
        risk=_merge_risks([model.risk for model in models]),
        budgets=_merge_budgets([model.budgets for model in models]),
        advice=_merge_advice([model.advice for model in models]),
    )


def _merge_risks(risks: Sequence[RiskReport]) -> RiskReport:
    observed = sum(risk.observed for risk in risks)
    exceeded = sum(risk.exceeded for risk in risks)
    achieved = exceeded / observed if observed else None
    return RiskReport(risks[0].stated, observed, exceeded, achieved)
