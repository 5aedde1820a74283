"""Counters and histograms that cost a dictionary's update, rendered when scraped.

prometheus-client's own objects lock and look labels up at every event: 4 us for a
histogram, and a request makes several. One event loop writes these, so they need no
lock; a scrape runs on the same loop.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import TypeVar

from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

MODEL = "model"
"""The label of a base model; its value is empty if no models are configured."""

Family = TypeVar("Family", bound=Metric)


def without_empty_labels(family: Family) -> Family:
    """Drop labels without a value, which Prometheus takes to be absent anyway."""
    family.samples = [
        sample._replace(labels={k: v for k, v in sample.labels.items() if v})
        for sample in family.samples
    ]
    return family


class FastCounter(Collector):
    """A counter, by label values.

    Args:
        name: with its ``_total``.
        documentation: one line.
        labels: names; values come as a tuple in the same order.
    """

    def __init__(
        self, name: str, documentation: str, labels: Sequence[str] = ()
    ) -> None:
        self._name = name
        self._documentation = documentation
        self._labels = list(labels)
        self.counts: dict[tuple[str, ...], int] = {}
        if self._labels in ([], [MODEL]):
            self.counts[("",) * len(self._labels)] = 0

    def add(self, *values: str) -> None:
        """Count one."""
        self.counts[values] = self.counts.get(values, 0) + 1

    def total(self) -> int:
        """Return the count over all label values."""
        return sum(self.counts.values())

    def by(self, label: str) -> Counter[str]:
        """Return the counts by one label."""
        position = self._labels.index(label)
        found: Counter[str] = Counter()
        for values, count in self.counts.items():
            found[values[position]] += count
        return found

    def collect(self) -> Iterator[CounterMetricFamily]:
        """One sample for each combination of values that occurred."""
        family = CounterMetricFamily(
            self._name, self._documentation, labels=self._labels
        )
        for values, count in sorted(self.counts.items()):
            family.add_metric(values, count)
        yield without_empty_labels(family)


class FastHistogram(Collector):
    """A histogram, by label values.

    Args:
        name: with its unit.
        documentation: one line.
        bounds: upper bounds of the buckets, increasing; +Inf is added.
        labels: names; values come as a tuple in the same order.
    """

    def __init__(
        self,
        name: str,
        documentation: str,
        bounds: Sequence[float],
        labels: Sequence[str] = (),
    ) -> None:
        self._name = name
        self._documentation = documentation
        self.bounds = list(bounds)
        self._labels = list(labels)
        self._names = [f"{bound:g}" for bound in bounds] + ["+Inf"]
        self._counts: dict[tuple[str, ...], list[float]] = {}
        """Of each bucket, and behind them the sum."""

    def add(self, value: float, *values: str) -> None:
        """Count one value."""
        counts = self._counts.get(values)
        if counts is None:
            counts = self._counts[values] = [0] * (len(self._names) + 1)
        counts[bisect_left(self.bounds, value)] += 1
        counts[-1] += value

    def counts_of(self, *values: str) -> list[int]:
        """Return the values in each bucket, summed over values of the first label."""
        found = [0] * len(self._names)
        for labels, counts in self._counts.items():
            if labels[0] in values:
                found = [a + int(b) for a, b in zip(found, counts, strict=False)]
        return found

    def collect(self) -> Iterator[HistogramMetricFamily]:
        """The buckets, cumulative as Prometheus has them, and the sum."""
        family = HistogramMetricFamily(
            self._name, self._documentation, labels=self._labels
        )
        for values, counts in sorted(self._counts.items()):
            buckets = list(zip(self._names, accumulate(counts[:-1]), strict=True))
            family.add_metric(values, buckets, counts[-1])
        yield without_empty_labels(family)
