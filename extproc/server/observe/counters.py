"""Counters and histograms with cheap updates, which are rendered when scraped.

prometheus-client's own objects take a lock and look up labels at every event. This
takes 4 us for a histogram, and each request updates several histograms. The classes in
this module need no lock, since updates and scrapes run on the same event loop.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import TypeVar

from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

MODEL = "model"
"""Label with the base model's name; its value is empty if no models are configured."""

Family = TypeVar("Family", bound=Metric)


def without_empty_labels(family: Family) -> Family:
    """Drop labels with an empty value, which Prometheus treats as absent anyway."""
    family.samples = [
        sample._replace(labels={k: v for k, v in sample.labels.items() if v})
        for sample in family.samples
    ]
    return family


class FastCounter(Collector):
    """A counter with labels.

    Args:
        name: metric name with its ``_total`` suffix.
        documentation: HELP text, one line.
        labels: label names; values are passed in the same order.
    """

    def __init__(
        self, name: str, documentation: str, labels: Sequence[str] = ()
    ) -> None:
        self._name = name
        self._documentation = documentation
        self._labels = list(labels)
        self.counts: defaultdict[tuple[str, ...], int] = defaultdict(int)
        if self._labels in ([], [MODEL]):
            self.counts[("",) * len(self._labels)] = 0

    def add(self, *values: str) -> None:
        """Add one."""
        self.counts[values] += 1

    def total(self) -> int:
        """Return the sum over all label values."""
        return sum(self.counts.values())

    def by(self, label: str) -> Counter[str]:
        """Return the counts by the values of one label."""
        position = self._labels.index(label)
        found: Counter[str] = Counter()
        for values, count in self.counts.items():
            found[values[position]] += count
        return found

    def collect(self) -> Iterator[CounterMetricFamily]:
        """Return one sample for each combination of label values seen."""
        family = CounterMetricFamily(
            self._name, self._documentation, labels=self._labels
        )
        for values, count in sorted(self.counts.items()):
            family.add_metric(values, count)
        yield without_empty_labels(family)


class FastHistogram(Collector):
    """A histogram with labels.

    Args:
        name: metric name with its unit.
        documentation: HELP text, one line.
        bounds: upper bounds of the buckets, in increasing order. A bucket up to +Inf is
            added.
        labels: label names; values are passed in the same order.
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
        """Counts of the buckets, followed by the sum of all values."""

    def add(self, value: float, *values: str) -> None:
        """Add a value to its bucket and to the sum."""
        counts = self._counts.get(values)
        if counts is None:
            counts = self._counts[values] = [0] * (len(self._names) + 1)
        counts[bisect_left(self.bounds, value)] += 1
        counts[-1] += value

    def counts_of(self, *values: str) -> list[int]:
        """Return each bucket's count, summed over values of the first label."""
        found = [0] * len(self._names)
        for labels, counts in self._counts.items():
            if labels[0] in values:
                found = [a + int(b) for a, b in zip(found, counts, strict=False)]
        return found

    def collect(self) -> Iterator[HistogramMetricFamily]:
        """Return the buckets, which are cumulative as in Prometheus, and the sum."""
        family = HistogramMetricFamily(
            self._name, self._documentation, labels=self._labels
        )
        for values, counts in sorted(self._counts.items()):
            buckets = list(zip(self._names, accumulate(counts[:-1]), strict=True))
            family.add_metric(values, buckets, counts[-1])
        yield without_empty_labels(family)
