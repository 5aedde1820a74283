"""Which instance of a pool takes a request."""

import math
from collections import OrderedDict
from collections.abc import Hashable, Sequence
from enum import StrEnum

from extproc.fleet.instance import Instance
from extproc.fleet.job import Job

#: An instance that has found a prefix is passed over once it has this many times the
#: mean number of requests: Envoy's ``hash_balance_factor``, at the 125 % of its docs.
BALANCE_FACTOR = 1.25
#: Keys of which a balancer remembers where they went.
_REMEMBERED = 1 << 18


class Balancing(StrEnum):
    """Ways to choose an instance."""

    LEAST_REQUEST = "least-request"
    """The less loaded of two drawn at random: Envoy's LEAST_REQUEST, its default."""
    RANDOM = "random"
    """Any, whatever its load: Envoy's RANDOM; also round robin, near enough."""
    PREFIX = "prefix"
    """The one that got the longest prefix of the prompt last, unless it has too much
    to do: as llm-d's prefix scorer, or Envoy's ring hash with bounded loads."""


class Balancer:
    """Chooses among the instances of a pool."""

    def __init__(self, kind: Balancing, instances: Sequence[Instance]) -> None:
        self._kind = kind
        self._instances = instances
        self._seen: OrderedDict[Hashable, int] = OrderedDict()

    def choose(self, job: Job, in_pool: int, first: float, second: float) -> Instance:
        """Choose by two uniform draws, and bring what was looked at to the present.

        Args:
            in_pool: requests that the pool has.
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
        """The less loaded of two different instances."""
        count = len(self._instances)
        position = int(first * count)
        if count == 1:
            return position
        other = int(second * (count - 1))
        # Another one: skip over the first.
        other += other >= position
        for each in (position, other):
            self._instances[each].advance(now_s)
        if len(self._instances[other]) < len(self._instances[position]):
            return other
        return position

    def _follow(self, job: Job, in_pool: int) -> int | None:
        """Where the longest known prefix went, if that instance can take more."""
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
