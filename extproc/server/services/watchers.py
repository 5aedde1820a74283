"""Interfaces of the components that the ext_proc service notifies."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from extproc.exchange.events import Decided, Observation
from extproc.routing.router import Decision, Lesson


class DecisionWatcher(Protocol):
    """Receives decisions; the metrics, for example, implement it."""

    def decided(self, decision: Decision) -> None:
        """Handle a decision quickly, since its reply has not been sent yet."""


class ObservationWatcher(Protocol):
    """Receives responses; the metrics, for example, implement it."""

    def observed(self, observation: Observation, lesson: Lesson) -> None:
        """Handle a response and the lesson learned from it."""


class Tracer(Protocol):
    """Records the span of each exchange's decision."""

    def record(
        self, decided: Decided, metadata: Mapping[str, str], elapsed_s: float
    ) -> None:
        """Record the span of a decision that has just been made.

        Args:
            decided: the decision and the request's headers.
            metadata: metadata of the gRPC stream.
            elapsed_s: seconds since the stream was opened.
        """
