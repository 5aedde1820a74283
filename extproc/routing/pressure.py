"""When a pool is under pressure, from what its vLLM servers say of themselves.

A request in vLLM's ``waiting`` queue waits because no sequence slot or no KV block is
free: a queue is the first sign of a pool with too little capacity. A full KV
cache is the other: running requests are then preempted and computed again. Two limits
for each, one to enter and a lower one to leave, keep requests from going to and fro.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class EndpointLoad:
    """One vLLM server's own gauges."""

    waiting: float
    """``vllm:num_requests_waiting``, summed over its engines."""
    running: float
    """``vllm:num_requests_running``, summed over its engines."""
    kv_cache_usage: float
    """``vllm:kv_cache_usage_perc``, 0 to 1: the mean over its engines."""


@dataclass(frozen=True, slots=True)
class PressureLimits:
    """Where pressure begins and ends; means over a pool's endpoints."""

    waiting_requests: float = 8.0
    kv_cache_usage: float = 0.97
    relief: float = 0.5
    """Share of both limits at or below which pressure ends, 0 to 1."""


class PoolPressure:
    """Whether one pool is under pressure, with hysteresis.

    Between two measurements our own requests are counted in: one that is sent to a
    pool with a queue lengthens it, though nobody has measured that yet, and one that
    is known to have ended lets another out of it. Of some nobody tells when they end:
    this errs towards pressure then, until the next measurement.
    """

    def __init__(self, limits: PressureLimits) -> None:
        self._limits = limits
        self._endpoints = 0
        self._measured_in_flight = 0.0
        self.in_flight = 0
        """Requests sent, less those known to have ended: its changes count."""
        self.waiting: float | None = None
        """Mean over the endpoints, as last measured; None where it is not known."""
        self.kv_cache_usage: float | None = None
        self.under_pressure = False

    def measured(
        self, loads: Sequence[EndpointLoad], in_flight: Sequence[int] | None = None
    ) -> None:
        """Take a measurement of those endpoints that have one.

        No measurement at all is no pressure: what is not known must not move traffic.

        Args:
            loads: of each endpoint.
            flights: what ``in_flight`` was when each was measured; None: what it is.
        """
        self._endpoints = len(loads)
        self._measured_in_flight = self.in_flight
        if in_flight:
            self._measured_in_flight = sum(in_flight) / len(in_flight)
        if not loads:
            self.waiting = self.kv_cache_usage = None
            self.under_pressure = False
            return
        self.waiting = sum(load.waiting for load in loads) / len(loads)
        self.kv_cache_usage = sum(load.kv_cache_usage for load in loads) / len(loads)
        self._decide()

    def sent(self) -> None:
        """Note that one more request goes to the pool."""
        self.in_flight += 1
        self._recount()

    def ended(self) -> None:
        """Note that one that was sent has ended."""
        self.in_flight -= 1
        self._recount()

    def _recount(self) -> None:
        # What is sent to a pool without a queue runs at once.
        if self.waiting:
            self._decide()

    def _decide(self) -> None:
        assert self.waiting is not None
        assert self.kv_cache_usage is not None
        limits = self._limits
        since = (self.in_flight - self._measured_in_flight) / self._endpoints
        share = max(
            (self.waiting + since) / limits.waiting_requests,
            self.kv_cache_usage / limits.kv_cache_usage,
        )
        if share >= 1.0:
            self.under_pressure = True
        elif share <= limits.relief:
            self.under_pressure = False
