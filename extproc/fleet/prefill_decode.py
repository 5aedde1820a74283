"""Prefill and decode on separate instances: a simulation of both pools.

One instance prefills a request with vLLM's scheduler, first come first served and
without decoding. The network transfers the keys and values, and another instance
decodes (:mod:`extproc.fleet.decoding`). vLLM's proxies return the first token of the
decode instance, so the client waits for the prefill, the transfer and one decode step.
Transfer and decode step add to TTFT, while other prompts do not affect TPOT.
Disaggregation by itself does not improve throughput (vLLM's documentation,
"Disaggregated prefilling").

A simulation runs until the fleet has filled, and then for the same time again.
"""

import math
from collections import deque
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt

from extproc.fleet.decoding import Decode, DecodeInstance
from extproc.fleet.instance import Instance
from extproc.fleet.job import Job
from extproc.fleet.models import Model
from extproc.fleet.scheduler import SchedulerLimits
from extproc.fleet.slo import COVERED, Slo
from extproc.fleet.steptime import StepTime
from extproc.fleet.workload import Arrivals, Lengths, Thinned

#: Lowest network bandwidth for the KV cache of a 70B model (Mooncake, FAST 2025).
TRANSFER_BYTES_PER_S = 12.5e9
#: Latency of one transfer, for NIXL's handshake and descriptors. This value is an
#: assumption. Measured transfers of vLLM, including latency, reached 4.3 GB/s (vLLM
#: issue 50913: 167 MB in 38.7 ms) and 1.8 GB/s on a host without NVLink (issue 34054:
#: 313 MB in 174 ms).
TRANSFER_LATENCY_S = 10e-3
#: Number of mean residence times that a fleet takes to fill. The measurement takes as
#: long again.
_FILL_RESIDENCES = 5.0
#: Minimum number of requests to measure, so that 60 requests are above the P99.
MEASURED = 6_000
#: A fleet counts as overloaded if the run has not settled after this multiple of the
#: number of requests to measure plus the number that its decode instances can hold.
_MOST_TIMES_MEASURED = 5
_MOST_TIMES_FULL = 8
#: Interval for collecting finished requests, in simulated seconds. It does not affect
#: the results, since requests always proceed in order of time.
_TICK_S = 0.5
#: Number of ticks between two tests of whether a run is over.
_TICKS = 4
#: Maximum relative growth of the number of requests in flight from the first half of a
#: steady run to the second.
_GROWTH = 0.15

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class KvTransfer:
    """The transfer of a prompt's keys and values between instances."""

    bytes_per_token: float
    """Bytes per token in all layers, with each KV head counted once."""
    bytes_per_s: float = TRANSFER_BYTES_PER_S
    """Network bandwidth of one instance, summed over its GPUs."""
    latency_s: float = TRANSFER_LATENCY_S
    """Latency of each transfer."""

    @classmethod
    def of(
        cls,
        model: Model,
        bytes_per_s: float = TRANSFER_BYTES_PER_S,
        latency_s: float = TRANSFER_LATENCY_S,
    ) -> "KvTransfer":
        """Return the transfer for a model's KV cache."""
        return cls(model.kv_bytes_per_token, bytes_per_s, latency_s)

    def seconds(self, prompt_tokens: int) -> float:
        """Return the duration of one prompt's transfer over an idle network."""
        return self.latency_s + self.wire_s(prompt_tokens)

    def wire_s(self, prompt_tokens: int) -> float:
        """Return the time for which one prompt occupies an instance's network."""
        return prompt_tokens * self.bytes_per_token / self.bytes_per_s


@dataclass(frozen=True, slots=True)
class Parts:
    """One class of requests, and the instances that prefill and decode them."""

    prefill: SchedulerLimits
    """Limits of a prefill instance; ``max_num_batched_tokens`` can be large, since no
    decoding request waits."""
    decode: SchedulerLimits
    step_time: StepTime
    transfer: KvTransfer
    rate: float
    """Mean arrival rate of the class, in requests a second."""
    arrivals: Arrivals
    lengths: Lengths
    """Lengths of the requests; those that exceed the window are truncated."""

    def thinned(self, share: float) -> "Parts":
        """Return a random share of the requests, for a fleet smaller by that factor."""
        if share >= 1:
            return self
        arrivals = Thinned(self.arrivals, share)
        return replace(self, rate=self.rate * share, arrivals=arrivals)


@dataclass(frozen=True, slots=True)
class Figures:
    """Steady-state figures of a run; NaN for quantiles without values.

    Attributes:
        steady: whether the number of requests in flight has stopped growing.
        measured: number of requests measured.
        late_ttft, late_tpot: shares of requests whose TTFT or TPOT exceeds the SLO.
        transfer_s: mean time from the end of the prefill to the KV cache's last byte,
            including the wait for the network.
    """

    steady: bool
    measured: int
    late_ttft: float
    late_tpot: float
    p99_ttft_s: float
    mean_ttft_s: float
    p99_tpot_s: float
    mean_tpot_s: float
    mean_prefill_s: float
    transfer_s: float
    prefill_utilization: float
    decode_utilization: float
    mean_decoding: float

    @property
    def kept(self) -> bool:
        """Whether TTFT and TPOT both meet the SLO at P99."""
        late = max(self.late_ttft, self.late_tpot)
        return self.steady and late <= 1 - COVERED


@dataclass(slots=True)
class _Request:
    """The state of a request in flight."""

    arrival_s: float
    prompt_tokens: int
    output_tokens: int
    prefilled_s: float = math.nan
    arrived_s: float = math.nan


@dataclass(slots=True)
class _Fleet:
    """The prefill pool and the decode pool in operation."""

    parts: Parts
    prefill: list[Instance]
    decode: list[DecodeInstance]
    rng: np.random.Generator
    links_free_s: list[float] = field(default_factory=list)
    decoding: dict[Decode, _Request] = field(default_factory=dict)
    ended: list[tuple[_Request, Decode]] = field(default_factory=list)

    @classmethod
    def of(cls, parts: Parts, prefill: int, decode: int, seed: int) -> "_Fleet":
        return cls(
            parts,
            [Instance(parts.prefill, parts.step_time) for _ in range(prefill)],
            [DecodeInstance(parts.decode, parts.step_time) for _ in range(decode)],
            np.random.default_rng(seed),
            [0.0] * prefill,
        )

    def submit(self, request: _Request) -> None:
        """Send a request to the less loaded of two random prefill instances, if any."""
        if not self.prefill:
            self._hand_on(request.arrival_s, None, request)
            return
        first, second = self._two(len(self.prefill))
        for index in (first, second):
            self.prefill[index].advance(request.arrival_s)
        chosen = min(
            (self.prefill[first], self.prefill[second]),
            key=lambda instance: len(instance),
        )
        chosen.add(Job(request.arrival_s, request.prompt_tokens, 1, tag=request))

    def _two(self, count: int) -> tuple[int, int]:
        first, second = self.rng.integers(count, size=2)
        return int(first), int(second)

    def advance(self, now_s: float) -> list[tuple[_Request, Decode]]:
        """Advance both pools, transfer requests, and return the finished ones."""
        handed: list[tuple[float, int, _Request]] = []
        for index, instance in enumerate(self.prefill):
            instance.advance(now_s)
            done = [job for job in instance.finished if job.finish_s <= now_s]
            instance.finished = [
                job for job in instance.finished if job.finish_s > now_s
            ]
            for job in done:
                assert isinstance(job.tag, _Request)
                handed.append((job.finish_s, index, job.tag))
        for ready_s, index, request in sorted(handed, key=lambda one: one[:2]):
            self._hand_on(ready_s, index, request)
        finished, self.ended = self.ended, []
        for decoder in self.decode:
            decoder.advance(now_s)
            finished += [(self.decoding.pop(one), one) for one in decoder.finished]
            decoder.finished = []
        return finished

    def _hand_on(self, ready_s: float, index: int | None, request: _Request) -> None:
        transfer = self.parts.transfer
        start_s = ready_s
        if index is not None:
            start_s = max(ready_s, self.links_free_s[index])
            self.links_free_s[index] = start_s + transfer.wire_s(request.prompt_tokens)
        moved_s = start_s + transfer.seconds(request.prompt_tokens)
        request.prefilled_s, request.arrived_s = ready_s, moved_s
        if not self.decode:
            self._take_first_token(ready_s, moved_s, request)
            return
        pair = self._two(len(self.decode))
        for one in pair:
            self.decode[one].advance(ready_s)
        chosen = min((self.decode[one] for one in pair), key=len)
        decode = Decode(
            ready_s, request.prompt_tokens, request.output_tokens, moved_s - ready_s
        )
        chosen.add(decode)
        self.decoding[decode] = request

    def _take_first_token(
        self, ready_s: float, moved_s: float, request: _Request
    ) -> None:
        """End an answer one step after its transfer, since no instance decodes it."""
        step_s = self.parts.step_time.fixed_s(0, self.parts.decode.max_num_seqs)
        done = Decode(ready_s, request.prompt_tokens, 1)
        done.first_token_s = done.finish_s = moved_s + step_s
        self.ended.append((request, done))

    def busy_s(self) -> tuple[float, float, float]:
        """Return both pools' busy time, and the time integral of decoding requests."""
        return (
            sum(instance.busy_s for instance in self.prefill),
            sum(instance.busy_s for instance in self.decode),
            sum(instance.running_s for instance in self.decode),
        )

    def in_flight(self) -> int:
        return sum(map(len, self.prefill)) + len(self.decoding)


def simulate(
    parts: Parts,
    prefill: int,
    decode: int,
    slo: Slo,
    seed: int,
    measured: int = MEASURED,
) -> Figures:
    """Run both pools until they have filled, and then for the same time again.

    A request is counted when it ends.

    Args:
        prefill, decode: numbers of instances. If one is 0, the other pool is simulated
            alone: without prefill instances, prompts take no time; without decode
            instances, answers take one step.
        measured: minimum number of requests to measure.
    """
    fleet = _Fleet.of(parts, prefill, decode, seed)
    draws = _Draws(parts, seed)
    run = _Run()
    tick_s, submitted = 0.0, 0
    places = parts.decode.max_num_seqs * max(1, decode)
    while submitted < _MOST_TIMES_MEASURED * measured + _MOST_TIMES_FULL * places:
        for _ in range(_TICKS):
            tick_s += max(_TICK_S, 1 / parts.rate)
            submitted += draws.submit_until(tick_s, fleet)
            run.seen += fleet.advance(tick_s)
            run.levels.append((tick_s, fleet.in_flight(), fleet.busy_s()))
        if run.is_over(tick_s, measured):
            run.settled = True
            break
    return run.figures(fleet, slo)


@dataclass(slots=True)
class _Run:
    """The requests finished so far, and the number in flight at each tick."""

    settled: bool = False
    seen: list[tuple[_Request, Decode]] = field(default_factory=list)
    levels: list[tuple[float, int, tuple[float, float, float]]] = field(
        default_factory=list
    )

    def fill_s(self) -> float:
        """Return the time to fill the fleet, measured in the later half of the run."""
        recent = self.seen[len(self.seen) // 2 :]
        if not recent:
            return math.inf
        mean_s = sum(done.finish_s - r.arrival_s for r, done in recent) / len(recent)
        return _FILL_RESIDENCES * mean_s

    def is_over(self, now_s: float, measured: int) -> bool:
        """Return whether the fleet has filled and enough requests were measured."""
        fill_s = self.fill_s()
        if now_s < 2 * fill_s:
            return False
        return sum(done.finish_s > fill_s for _, done in self.seen) >= measured

    def figures(self, fleet: _Fleet, slo: Slo) -> Figures:
        """Return the figures of requests that finished after the fleet had filled."""
        fill_s = self.fill_s()
        taken = [pair for pair in self.seen if pair[1].finish_s > fill_s]
        window = [level for level in self.levels if level[0] > fill_s]
        window = window if len(window) > 1 else self.levels[-2:]
        middle = len(window) // 2
        first, second = (
            sum(in_flight for _, in_flight, _ in half) / len(half)
            for half in (window[: middle or 1], window[middle:])
        )
        span_s = window[-1][0] - window[0][0]
        before, after = window[0][2], window[-1][2]
        prefill_s, decode_s, decoding_s = (
            (b - a) / span_s for a, b in zip(before, after, strict=True)
        )
        ttfts = np.array([done.first_token_s - r.arrival_s for r, done in taken])
        promised = np.array([_ttft_promise(r, slo) for r, _ in taken])
        tpots = np.array(
            [
                (done.finish_s - done.first_token_s) / (done.output_tokens - 1)
                for _, done in taken
                if done.output_tokens > 1
            ]
        )
        return Figures(
            steady=self.settled and bool(taken) and second <= (1 + _GROWTH) * first + 2,
            measured=len(taken),
            late_ttft=_mean((ttfts > promised).astype(float)),
            late_tpot=_mean((tpots > slo.p99_tpot_s).astype(float), nothing=0.0),
            p99_ttft_s=_quantile(ttfts),
            mean_ttft_s=_mean(ttfts),
            p99_tpot_s=_quantile(tpots),
            mean_tpot_s=_mean(tpots),
            mean_prefill_s=_mean(
                np.array([r.prefilled_s - r.arrival_s for r, _ in taken])
            ),
            transfer_s=_mean(np.array([r.arrived_s - r.prefilled_s for r, _ in taken])),
            prefill_utilization=prefill_s / max(1, len(fleet.prefill)),
            decode_utilization=decode_s / max(1, len(fleet.decode)),
            mean_decoding=decoding_s / max(1, len(fleet.decode)),
        )


def _ttft_promise(request: _Request, slo: Slo) -> float:
    tokens = request.prompt_tokens + request.output_tokens
    return slo.long_ttft_s if tokens > slo.long_tokens else slo.p99_ttft_s


class _Draws:
    """Arrivals and lengths, drawn in blocks."""

    def __init__(self, parts: Parts, seed: int) -> None:
        instants, lengths = np.random.SeedSequence(seed).spawn(2)
        self._lengths = np.random.default_rng(lengths)
        self._parts = parts
        self._blocks = parts.arrivals(np.random.default_rng(instants))
        self._pending: deque[_Request] = deque()

    def submit_until(self, until_s: float, fleet: _Fleet) -> int:
        """Submit the requests that arrive before a time, and return their number."""
        submitted = 0
        while True:
            if not self._pending:
                self._draw()
            if self._pending[0].arrival_s > until_s:
                return submitted
            fleet.submit(self._pending.popleft())
            submitted += 1

    def _draw(self) -> None:
        window = self._parts.decode.max_model_len
        instants = next(self._blocks)
        prompts, outputs = self._parts.lengths.draw(
            self._lengths, len(instants), evenly=False
        )
        prompts = np.minimum(prompts, window - 1)
        outputs = np.minimum(outputs, window - prompts)
        self._pending.extend(
            _Request(*row)
            for row in zip(
                instants.tolist(), prompts.tolist(), outputs.tolist(), strict=True
            )
        )


def _quantile(values: Floats) -> float:
    return float(np.quantile(values, 0.99)) if len(values) else math.nan


def _mean(values: Floats, nothing: float = math.nan) -> float:
    return float(values.mean()) if len(values) else nothing
