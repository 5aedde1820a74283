"""Pressure on a pool, from the load that its vLLM servers report.

A request in vLLM's ``waiting`` queue waits because no sequence slot or no KV block is
free: a queue is the first sign of a pool with too little capacity. A full KV cache is
the other sign, because running requests are then preempted and computed again. Each
signal has a limit at which pressure starts and a lower one at which it stops, so that
requests do not oscillate between pools.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class EndpointLoad:
    """The gauges of one vLLM server."""

    waiting: float
    """``vllm:num_requests_waiting``, summed over its engines."""
    running: float
    """``vllm:num_requests_running``, summed over its engines."""
    kv_cache_usage: float
    """``vllm:kv_cache_usage_perc``, 0 to 1; mean over the endpoint's engines."""


@dataclass(frozen=True, slots=True)
class PressureLimits:
    """Limits for means over a pool's endpoints, at which pressure starts and stops."""

    waiting_requests: float = 8.0
    kv_cache_usage: float = 0.97
    relief: float = 0.5
    """Pressure stops at or below this fraction of both limits, 0 to 1."""


class PoolPressure:
    """Whether one pool is under pressure, with hysteresis.

    Between two measurements, the queue is estimated from the router's own requests. A
    request sent to a pool with a queue lengthens the queue, and a request known to have
    ended shortens it. The end of some requests is never reported; the estimate then
    errs toward pressure until the next measurement.
    """

    def __init__(self, limits: PressureLimits) -> None:
        self._limits = limits
        self._endpoints = 0
        self._measured_in_flight = 0.0
        self.in_flight = 0
        """Number of requests sent minus number of requests known to have ended. Only
        changes of this difference matter."""
        self.waiting: float | None = None
        """Queue length as last measured, a mean over the endpoints; None if unknown."""
        self.kv_cache_usage: float | None = None
        self.under_pressure = False

    def measured(
        self, loads: Sequence[EndpointLoad], in_flight: Sequence[int] | None = None
    ) -> None:
        """Update with the measurements of the pool's endpoints.

        Without any measurement there is no pressure, because unknown load must not move
        traffic.

        Args:
            loads: one for each measured endpoint.
            in_flight: value of ``in_flight`` at the time of each measurement; None for
                the current value.
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
        """Count a request sent to the pool."""
        self.in_flight += 1
        self._recount()

    def ended(self) -> None:
        """Count the end of a request sent to the pool."""
        self.in_flight -= 1
        self._recount()

    def _recount(self) -> None:
        # A request sent to a pool without a queue runs at once.
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
