"""What the ext_proc service tells others of its exchanges."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from extproc.exchange.events import Decided, Observation
from extproc.routing.router import Decision, Lesson


class DecisionWatcher(Protocol):
    """Takes note of decisions; the metrics do."""

    def decided(self, decision: Decision) -> None:
        """Take note of a decision, before its reply is sent: no time to lose."""


class ObservationWatcher(Protocol):
    """Takes note of responses; the metrics do."""

    def observed(self, observation: Observation, lesson: Lesson) -> None:
        """Take note of a response, and of what it taught."""


class Tracer(Protocol):
    """Records the span of each exchange's decision."""

    def record(
        self, decided: Decided, metadata: Mapping[str, str], elapsed_s: float
    ) -> None:
        """Record the span of a decision that was made just now.

        Args:
            decided: the decision and its request's headers.
            metadata: the gRPC stream's.
            elapsed_s: seconds since the stream was opened.
        """
