"""Several workers' metrics and reports as if they were one server's.

Counters and histograms add up, and never fall: what an ended worker had counted when
it was last asked stays in the sums, since Prometheus takes a fall for a restart and
would count everything again. Gauges are told apart by a label, as replicas' are by
their instance.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector

from extproc.server.observe.recent import LAST_DECISIONS

_SUMMED_GAUGES = frozenset({"extproc_streams_inflight"})
_SAME_GAUGES = frozenset({"extproc_build_info"})
_CUMULATIVE = frozenset({"counter", "histogram"})

_Labels = tuple[tuple[str, str], ...]
_Key = tuple[str, str, _Labels]
"""Family, sample and labels."""


class MergedMetrics(Collector):
    """What all workers count.

    Args:
        workers: how many there are.
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
        """Note what a worker's /metrics said; None: it gave no answer."""
        self._up[worker] = text is not None
        known = self._known[worker]
        if text is None:
            # Its counts stand until it says more; its state is not known.
            self._known[worker] = {k: v for k, v in known.items() if self._adds_up(k)}
            return
        self._known[worker] = self._read(text)

    def restarted(self, worker: int) -> None:
        """Note that a worker begins anew: what the one before counted is kept."""
        for key, value in self._known[worker].items():
            if self._adds_up(key):
                self._ended[key] = self._ended.get(key, 0.0) + value
        self._known[worker] = {}
        self._restarts[worker] += 1

    def render(self) -> bytes:
        """All of it in Prometheus' text format."""
        return generate_latest(self._registry)

    def _read(self, text: str) -> dict[_Key, float]:
        values: dict[_Key, float] = {}
        for family in text_string_to_metric_families(text):
            if family.name.endswith("_created"):
                continue  # when a worker began to count says nothing of a sum
            self._kinds[family.name] = (family.type, family.documentation)
            for sample in family.samples:
                labels = tuple(sorted(sample.labels.items()))
                values[family.name, sample.name, labels] = sample.value
        return values

    def _adds_up(self, key: _Key) -> bool:
        return self._kinds[key[0]][0] in _CUMULATIVE

    def collect(self) -> Iterator[Metric]:
        """Every family once, and how the workers are."""
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
            "extproc_worker_restarts", "Workers started again", labels=["worker"]
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


def merge_reports(reports: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What /status says, of several workers in one.

    Args:
        reports: at least one, each as ``Status.report`` gives it.
    """
    first = reports[0]
    decisions = sum(report["decisions"] for report in reports)
    return {
        **first,
        "ready": all(report["ready"] for report in reports),
        "uptime_s": max(report["uptime_s"] for report in reports),
        "decisions": decisions,
        "pools": [
            _merge_pools([report["pools"][i] for report in reports], decisions)
            for i in range(min(len(report["pools"]) for report in reports))
        ],
        "reasons": _sums(reports, "reasons"),
        "categories": _merge_categories([report["categories"] for report in reports]),
        "bytes_per_token": _merge_ratios(reports),
        "risk": _merge_risks([report["risk"] for report in reports]),
        "observations": _sums(reports, "observations"),
        "misroutes": _sums(reports, "misroutes"),
        "overflow_retries": sum(report["overflow_retries"] for report in reports),
        "budgets": _merge_budgets([report["budgets"] for report in reports]),
        "advice": _merge_advice([report["advice"] for report in reports]),
        "last_decisions": sorted(
            (each for report in reports for each in report["last_decisions"]),
            key=lambda decision: -decision["time_s"],
        )[:LAST_DECISIONS],
    }


def _merge_budgets(budgets: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Shares weigh by their requests.

    Of those whose bins are the first's: workers have the same pools, but for the moment
    in which they take others.
    """
    thresholds = budgets[0]["thresholds"]
    alike = [each for each in budgets if each["thresholds"] == thresholds]
    requests = sum(each["requests"] for each in alike)
    weighed = [[share * each["requests"] for share in each["shares"]] for each in alike]
    columns = zip(*weighed, strict=True)
    shares = [sum(column) / requests if requests else 0.0 for column in columns]
    return {**budgets[0], "shares": shares, "requests": requests}


def _merge_advice(advices: Sequence[Mapping[str, Any] | None]) -> dict[str, Any] | None:
    """The advice of the worker that saw most: what it rests on is all of theirs."""
    given = [advice for advice in advices if advice is not None]
    if not given:
        return None
    busiest = max(given, key=lambda advice: advice["requests"])
    return {**busiest, "requests": sum(advice["requests"] for advice in given)}


def _sums(reports: Sequence[Mapping[str, Any]], key: str) -> dict[str, int]:
    total: Counter[str] = Counter()
    for report in reports:
        total.update(report[key])
    return dict(total)


def _merge_pools(pools: Sequence[Mapping[str, Any]], decisions: int) -> dict[str, Any]:
    here = sum(pool["decisions"] for pool in pools)
    return {
        **pools[0],
        "decisions": here,
        "share": here / decisions if decisions else None,
        "available": any(pool["available"] for pool in pools),
        "under_pressure": any(pool["under_pressure"] for pool in pools),
    }


def _merge_categories(tables: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    return {
        name: _merge_category([table[name] for table in tables if name in table])
        for name in sorted({name for table in tables for name in table})
    }


def _merge_category(categories: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Counts add up, errors are weighed by them; the curves are the busiest worker's.

    What is learned is shared, so that one worker's course is everyone's, nearly.
    """
    busiest = max(categories, key=_observed)
    merged = dict(busiest)
    merged["decisions"] = sum(each["decisions"] for each in categories)
    learned = [each for each in categories if _observed(each)]
    if not learned:
        return merged
    observed = sum(map(_observed, learned))
    merged["observed"] = observed
    for key in ("mean_absolute_error", "bias"):
        weighed = (each[key] * each["observed"] for each in learned)
        merged[key] = sum(weighed) / observed
    return merged


def _observed(category: Mapping[str, Any]) -> int:
    return int(category.get("observed", 0))


def _merge_ratios(reports: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    ratios: dict[str, float] = {}
    most: dict[str, int] = {}
    for report in reports:
        for name, ratio in report["bytes_per_token"].items():
            observed = _observed(report["categories"].get(name, {}))
            if name not in ratios or observed > most[name]:
                ratios[name], most[name] = ratio, observed
    return dict(sorted(ratios.items()))


def _merge_risks(risks: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    observed = sum(risk["observed"] for risk in risks)
    exceeded = sum(risk["exceeded"] for risk in risks)
    return {
        **risks[0],
        "observed": observed,
        "exceeded": exceeded,
        "achieved": exceeded / observed if observed else None,
    }
