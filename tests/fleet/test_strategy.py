"""Each strategy uses only the information that is available to it."""

import numpy as np
import pytest

from extproc.fleet.strategy import Arrival, StrategyName, StrategySpec, build_strategy
from extproc.routing.policy import Pool

POOLS = [Pool("short", 1000, 1000), Pool("long", 8000, 8000)]


@pytest.mark.parametrize(
    ("name", "arrival", "position"),
    [
        (StrategyName.ORACLE, Arrival(500, 400, 400), 0),
        (StrategyName.ORACLE, Arrival(500, 501, None), 1),
        (StrategyName.ORACLE, Arrival(500, 10, 600), 1),
        (StrategyName.PROMPT_LENGTH, Arrival(900, 4000, 4000), 0),
        (StrategyName.PROMPT_LENGTH, Arrival(1001, 1, 1), 1),
        # 900 tokens of prose are about 4,400 bytes of body, which the rule counts as
        # 1,100 tokens.
        (StrategyName.BYTES_PER_4, Arrival(900, 10, 10), 1),
        (StrategyName.BYTES_PER_4, Arrival(500, 10, 10), 0),
        (StrategyName.BYTES_PER_4, Arrival(500, 10, None), 1),
        (StrategyName.ROUTER, Arrival(3000, 10, 10), 1),
        (StrategyName.EMA, Arrival(3000, 10, 10), 1),
    ],
)
def test_choice(name: StrategyName, arrival: Arrival, position: int) -> None:
    spec = StrategySpec(name, {"prose": 1.0}, variation_factor=0)
    strategy = build_strategy(spec, POOLS, np.random.default_rng(1))
    chosen, kept = strategy.choose(arrival, {})
    assert chosen == position
    strategy.learn(kept, arrival.prompt_tokens, arrival.output_tokens)


@pytest.mark.parametrize("name", [StrategyName.ROUTER, StrategyName.EMA])
def test_the_router_moves_the_boundary_as_it_learns(name: StrategyName) -> None:
    """Before it learns, the router estimates 900 tokens of prose as 1,020 tokens of 4.0
    bytes each.
    """
    spec = StrategySpec(name, {"prose": 1.0}, variation_factor=0)
    strategy = build_strategy(spec, POOLS, np.random.default_rng(1))
    arrival = Arrival(900, 10, 10)
    first, kept = strategy.choose(arrival, {})
    for _ in range(400):
        strategy.learn(kept, 900, 10)
        last, kept = strategy.choose(arrival, {})
    assert (first, last) == (1, 0)
