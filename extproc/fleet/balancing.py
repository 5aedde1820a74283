"""Load balancing: the choice of an instance within a pool."""

import math
from collections import OrderedDict
from collections.abc import Hashable, Sequence
from enum import StrEnum

from extproc.fleet.instance import Instance
from extproc.fleet.job import Job

#: An instance with a matching prefix is skipped if it has more than this multiple of
#: the mean number of requests. This is Envoy's ``hash_balance_factor``, with the value
#: in its documentation, 125 %.
BALANCE_FACTOR = 1.25
#: Number of prefix keys whose last instance a balancer remembers.
_REMEMBERED = 1 << 18


class Balancing(StrEnum):
    """A rule that chooses an instance."""

    LEAST_REQUEST = "least-request"
    """The less loaded of two random instances, as with LEAST_REQUEST, Envoy's default.
    """
    RANDOM = "random"
    """A random instance regardless of its load, as with Envoy's RANDOM. Round robin is
    similar."""
    PREFIX = "prefix"
    """The instance that last received the longest prefix of the prompt, unless its load
    is too high. llm-d's prefix scorer and Envoy's ring hash with bounded loads are
    similar."""


class Balancer:
    """A load balancer over the instances of a pool."""

    def __init__(self, kind: Balancing, instances: Sequence[Instance]) -> None:
        self._kind = kind
        self._instances = instances
        self._seen: OrderedDict[Hashable, int] = OrderedDict()

    def choose(self, job: Job, in_pool: int, first: float, second: float) -> Instance:
        """Choose by two uniform draws, after advancing the compared instances to now.

        Args:
            in_pool: number of requests in the pool.
        """
        if self._kind is Balancing.PREFIX and job.prefix is not None:
            position = self._follow(job, in_pool)
            if position is None:
                position = self._least(job.arrival_s, first, second)
            self._remember(job, position)
        elif self._kind is Balancing.RANDOM:
            position = int(first * len(self._instances))
        else:
            position = self._least(job.arrival_s, first, second)
        chosen = self._instances[position]
        chosen.advance(job.arrival_s)
        return chosen

    def _least(self, now_s: float, first: float, second: float) -> int:
        """Return the less loaded of two different instances."""
        count = len(self._instances)
        position = int(first * count)
        if count == 1:
            return position
        other = int(second * (count - 1))
        # Leave the first instance out of the second choice.
        other += other >= position
        for each in (position, other):
            self._instances[each].advance(now_s)
        if len(self._instances[other]) < len(self._instances[position]):
            return other
        return position

    def _follow(self, job: Job, in_pool: int) -> int | None:
        """Return the last instance to receive the longest prefix, if it has room."""
        assert job.prefix is not None
        for key in reversed(job.prefix.keys):
            position = self._seen.get(key)
            if position is not None:
                instance = self._instances[position]
                instance.advance(job.arrival_s)
                most = math.ceil(BALANCE_FACTOR * (in_pool + 1) / len(self._instances))
                return position if len(instance) < most else None
        return None

    def _remember(self, job: Job, position: int) -> None:
        assert job.prefix is not None
        for key in job.prefix.keys:
            self._seen[key] = position
            self._seen.move_to_end(key)
        while len(self._seen) > _REMEMBERED:
            self._seen.popitem(last=False)
