"""Requests of a file at their own instants, with their own lengths.

What is replayed is the file's busiest stretch, round after round. A higher rate is made
of copies of it, laid over each other and shifted by up to a minute each: what happens
within seconds does not coincide, what happens within minutes and hours does. Time is
never sped up, for a burst of a minute would then be a burst of a second. A lower rate
is a random part of the requests.
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

#: The longest stretch that is replayed: the busiest hour of a day or of a week.
LONGEST_S = 3600.0
#: Stretches of more requests than this are cut down to their busiest part,
MOST_REQUESTS = 40_000
#: but to none shorter than this, in which bursts of seconds still have room.
SHORTEST_S = 60.0
#: Copies are shifted by up to so many seconds.
SHIFT_S = 60.0


@dataclass(frozen=True, slots=True)
class Replay:
    """A stretch of a file, replayed without end; a stream of requests.

    Attributes:
        instants: seconds from the start of the stretch, in order.
        prompts, outputs: tokens of the request at each instant.
        period_s: length of the stretch; the next round starts there.
        start_s: where it starts in the file, in seconds from the first request.
        copies: rate over the stretch's own; 1 replays it as it is.
        prefixes: what each request has in common with others, if that is known. Copies
            and rounds have nothing in common with each other.
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
        """The lengths, without their instants."""
        return Recorded(self.prompts, self.outputs)

    @property
    def own_rate(self) -> float:
        """Requests a second of the stretch, in the file."""
        return len(self.instants) / self.period_s

    @property
    def rate(self) -> float:
        """Requests a second, on average over a round."""
        return self.copies * self.own_rate

    @property
    def requests(self) -> int:
        """Requests of a round, on average."""
        return round(self.rate * self.period_s)

    def at_rate(self, rate: float) -> "Replay":
        """The same stretch at another mean rate, made of copies."""
        return replace(self, copies=rate / self.own_rate)

    def only(self, rows: npt.NDArray[np.bool_]) -> "Replay":
        """Those requests alone, at the same instants; at least one."""
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
        """Replay round after round, the copies shifted by other times in each."""
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
        """Instants of one round, in order; the row and the copy of each request."""
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
    """The stretch of a file that is replayed, at a rate.

    Args:
        instants: of each row of ``lengths``, in any order.
        rate: mean requests a second of the busiest hour (of the file, if it is
            shorter); None for its own.
        most_requests: of a round, at this rate; None for no limit.
        prefixes: of each row, if they are known.

    The busiest hour, or the whole file if it is shorter; of that, the busiest part that
    holds ``most_requests`` on average, but a minute at the least.
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
    """Seconds that a file covers: from first to last, and one mean gap."""
    count = len(instants)
    between = float(instants.max() - instants.min())
    return between * count / max(count - 1, 1) if between > 0 else 1.0


def _cut(replayed: Replay, length_s: float) -> Replay:
    """The stretch of this length with the most requests; the first of equals."""
    if replayed.period_s <= length_s:
        return replayed
    instants = replayed.instants
    # Starting at a request is as good as starting anywhere.
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
