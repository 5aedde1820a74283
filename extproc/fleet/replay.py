"""Replay of a file's requests, at their own times and with their own lengths.

The file's busiest period is replayed, round after round. For a higher rate, copies of
the period are overlaid, each shifted by up to a minute. With these shifts, peaks of
seconds do not coincide, but peaks of minutes and hours do. Time is never compressed,
since a burst of a minute could become a burst of a second. For a lower rate, a random
part of the requests is replayed.
"""

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from extproc.fleet.prefix_cache import Prefix
from extproc.fleet.prefixes import Prefixes
from extproc.fleet.workload import BLOCK, Block, Recorded, Seconds, Tokens

#: Maximum period to replay in seconds, so that a day or a week is reduced to its
#: busiest hour.
LONGEST_S = 3600.0
#: A period with more requests than this number is reduced to its busiest part.
MOST_REQUESTS = 40_000
#: Minimum duration of the busiest part in seconds, so that it contains bursts of
#: several seconds.
SHORTEST_S = 60.0
#: Maximum shift of a copy in seconds.
SHIFT_S = 60.0


@dataclass(frozen=True, slots=True)
class Replay:
    """A period of a file, replayed endlessly as a stream of requests.

    Attributes:
        instants: seconds from the start of the period, in order.
        prompts, outputs: number of tokens of each request.
        period_s: length of the period; the next round starts after it.
        start_s: start of the period in the file, in seconds from the first request.
        copies: rate divided by the period's own rate; 1 replays the period unchanged.
        prefixes: shared prefix of each request, if known. Copies and rounds share
            nothing with each other.
    """

    instants: Seconds
    prompts: Tokens
    outputs: Tokens
    period_s: float
    start_s: float = 0.0
    copies: float = 1.0
    prefixes: Prefixes | None = None

    @property
    def lengths(self) -> Recorded:
        """Return the lengths without their times."""
        return Recorded(self.prompts, self.outputs)

    @property
    def own_rate(self) -> float:
        """Mean rate of this period of the file, in requests a second."""
        return len(self.instants) / self.period_s

    @property
    def rate(self) -> float:
        """Mean requests a second over a round."""
        return self.copies * self.own_rate

    @property
    def requests(self) -> int:
        """Mean number of requests in a round."""
        return round(self.rate * self.period_s)

    def at_rate(self, rate: float) -> "Replay":
        """Return the same period at another mean rate, by changing ``copies``."""
        return replace(self, copies=rate / self.own_rate)

    def only(self, rows: npt.NDArray[np.bool_]) -> "Replay":
        """Return a replay of only these requests (at least one), at the same times."""
        return replace(
            self,
            instants=self.instants[rows],
            prompts=self.prompts[rows],
            outputs=self.outputs[rows],
            prefixes=self.prefixes
            and tuple(self.prefixes[row] for row in np.flatnonzero(rows)),
        )

    def __call__(
        self, instants: np.random.Generator, lengths: np.random.Generator
    ) -> Iterator[Block]:
        """Yield one round after another, each with new shifts of the copies."""
        start_s = 0.0
        for number in itertools.count():
            times, rows, copies = self._round(instants)
            for begin in range(0, len(times), BLOCK):
                chosen = rows[begin : begin + BLOCK]
                yield (
                    start_s + times[begin : begin + BLOCK],
                    self.prompts[chosen],
                    self.outputs[chosen],
                    self._prefixes(number, chosen, copies[begin : begin + BLOCK]),
                )
            start_s += self.period_s

    def _prefixes(
        self, number: int, rows: Tokens, copies: Tokens
    ) -> list[Prefix | None] | None:
        if self.prefixes is None:
            return None
        found: list[Prefix | None] = []
        for row, copy in zip(rows.tolist(), copies.tolist(), strict=True):
            prefix = self.prefixes[row]
            if prefix is not None:
                keys = tuple((number, copy, key) for key in prefix.keys)
                prefix = replace(prefix, keys=keys)
            found.append(prefix)
        return found

    def _round(self, rng: np.random.Generator) -> tuple[Seconds, Tokens, Tokens]:
        """Return the times of a round in order, and each request's row and copy."""
        count = len(self.instants)
        times, rows, copies = [], [], []
        for copy in range(math.ceil(self.copies)):
            kept = np.arange(count)
            share = self.copies - copy
            if share < 1:
                kept = kept[rng.random(count) < share]
            shift_s = rng.random() * SHIFT_S if copy else 0.0
            times.append((self.instants[kept] + shift_s) % self.period_s)
            rows.append(kept)
            copies.append(np.full(len(kept), copy))
        laid = np.concatenate(times)
        order = np.argsort(laid, kind="stable")
        return laid[order], np.concatenate(rows)[order], np.concatenate(copies)[order]


def busiest(
    instants: Seconds,
    lengths: Recorded,
    rate: float | None = None,
    most_requests: float | None = MOST_REQUESTS,
    prefixes: Prefixes | None = None,
) -> Replay:
    """Return the busiest period of a file, for a replay at the given rate.

    The period is the busiest hour, or the whole file if it is shorter than an hour. If
    it has more than ``most_requests`` on average, it is cut to its busiest part with
    that many, but to no less than a minute.

    Args:
        instants: time of each row of ``lengths``, in any order.
        rate: mean requests a second in the busiest hour (or in the file, if shorter);
            None for the file's own rate.
        most_requests: limit for a round at this rate; None for no limit.
        prefixes: shared prefix of each row, if known.
    """
    order = np.argsort(instants, kind="stable")
    replayed = Replay(
        instants[order] - instants[order[0]],
        lengths.prompts[order],
        lengths.outputs[order],
        span_s(instants),
        prefixes=prefixes and tuple(prefixes[row] for row in order),
    )
    replayed = _cut(replayed, LONGEST_S)
    if rate is not None:
        replayed = replayed.at_rate(rate)
    if most_requests is not None and replayed.requests > most_requests:
        share = most_requests / replayed.requests
        length_s = max(SHORTEST_S, share * replayed.period_s)
        return _cut(replayed, length_s)
    return replayed


def span_s(instants: Seconds) -> float:
    """Return a file's duration: from first to last request, plus one mean gap."""
    count = len(instants)
    between = float(instants.max() - instants.min())
    return between * count / max(count - 1, 1) if between > 0 else 1.0


def _cut(replayed: Replay, length_s: float) -> Replay:
    """Return the busiest period of this length; of equally busy ones, the first."""
    if replayed.period_s <= length_s:
        return replayed
    instants = replayed.instants
    # It is enough to try periods that start at a request.
    ends = np.searchsorted(instants, instants + length_s)
    ends[instants + length_s > replayed.period_s] = 0
    counts = ends - np.arange(len(instants))
    first = int(np.argmax(counts))
    rows = np.zeros(len(instants), bool)
    rows[first : ends[first]] = True
    begin_s = float(instants[first])
    kept = replayed.only(rows)
    return replace(
        kept,
        instants=kept.instants - begin_s,
        period_s=length_s,
        start_s=replayed.start_s + begin_s,
    )
