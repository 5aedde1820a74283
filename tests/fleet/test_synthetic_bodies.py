"""Bodies have the bytes per token of their category, and the router recognizes it."""

import numpy as np
import pytest

from extproc.fleet.synthetic_bodies import KINDS, TEMPLATE_TOKENS, Bodies
from extproc.routing.category import classify
from extproc.routing.features import measure


@pytest.mark.parametrize("name", KINDS)
def test_bytes_per_token_and_category(name: str) -> None:
    bodies = Bodies({name: 1.0}, np.random.default_rng(1))
    drawn = [bodies.draw(2000 + TEMPLATE_TOKENS, 64) for _ in range(4000)]
    ratios = np.array([len(request.prompt.text) / 2000 for request in drawn])
    kind = KINDS[name]
    assert ratios.mean() == pytest.approx(kind.bytes_per_token, rel=0.01)
    assert ratios.std() / ratios.mean() == pytest.approx(kind.variation, rel=0.05)
    assert all(request.body_bytes > len(request.prompt.text) for request in drawn[:9])
    assert {classify(measure(r.prompt, r.body_bytes)) for r in drawn[:9]} == {name}


def test_without_variation_tokens_are_a_constant_number_of_bytes() -> None:
    bodies = Bodies({"prose": 1.0}, np.random.default_rng(1), variation_factor=0)
    sizes = {len(bodies.draw(1010, None).prompt.text) for _ in range(50)}
    assert sizes == {4520}


def test_an_unknown_kind_is_refused() -> None:
    with pytest.raises(ValueError, match="mix: poems; expected prose, code, cjk"):
        Bodies({"poems": 1.0}, np.random.default_rng(1))
