"""Image tokens, from model families' public formulas or learned from responses."""

import math
import random
from collections.abc import Callable

import pytest

from extproc.routing.media import (
    MEDIA_TERMS,
    MediaEstimator,
    MediaTokens,
    MediaVector,
    image_terms,
    media_of,
)
from extproc.routing.request import Prompt

Formula = Callable[[int, int], float]


def smart_resize(width: int, height: int, side: int, low: int, high: int) -> float:
    """Apply Qwen's formula: round sides to a multiple, within limits of the pixel
    count.
    """

    def whole(length: float, rounds: Callable[[float], float] = round) -> float:
        return max(side, rounds(length / side) * side)

    columns, rows = whole(width), whole(height)
    if columns * rows > high:
        scale = math.sqrt(width * height / high)
        columns, rows = (
            whole(width / scale, math.floor),
            whole(height / scale, math.floor),
        )
    elif columns * rows < low:
        scale = math.sqrt(low / (width * height))
        columns, rows = (
            whole(width * scale, math.ceil),
            whole(height * scale, math.ceil),
        )
    return columns * rows / side**2


def patches(width: int, height: int, side: int, longest: int) -> float:
    """Apply Mistral's formula: patches within a longest side, and one break per row."""
    scale = max(width / longest, height / longest, 1)
    rows = math.ceil(height / scale / side)
    return math.ceil(width / scale / side) * rows + rows


def openai(width: int, height: int) -> float:
    scale = min(1, 2048 / max(width, height))
    scale *= min(1, 768 / (min(width, height) * scale))
    tiles = math.ceil(width * scale / 512) * math.ceil(height * scale / 512)
    return 85 + 170 * tiles


def internvl(width: int, height: int) -> float:
    grids = [(i, j) for i in range(1, 13) for j in range(1, 13) if i * j <= 12]

    def rank(grid: tuple[int, int]) -> tuple[float, int]:
        tiles = grid[0] * grid[1]
        large = width * height > 0.5 * 448 * 448 * tiles
        return abs(width / height - grid[0] / grid[1]), -tiles if large else tiles

    columns, rows = min(grids, key=rank)
    return 256 * (columns * rows + (columns * rows > 1))


FAMILIES: dict[str, Formula] = {
    "Qwen2.5-VL": lambda w, h: smart_resize(w, h, 28, 3136, 12_845_056),
    "Qwen2.5-VL, at most 1,280": lambda w, h: smart_resize(w, h, 28, 3136, 1280 * 784),
    "Qwen3-VL": lambda w, h: smart_resize(w, h, 32, 65_536, 16_777_216),
    "Pixtral": lambda w, h: patches(w, h, 16, 1024),
    "Mistral 3.1": lambda w, h: patches(w, h, 28, 1540),
    "LLaVA 1.5": lambda w, h: 576,
    "Gemma 3": lambda w, h: 260,
    "InternVL": internvl,
    "GPT-4o": openai,
    "of no known family": lambda w, h: 64 + w * h / 1500,
}
SIZES = [(1920, 1080), (1280, 720), (2560, 1440), (1366, 768), (1170, 2532)]
SIZES += [(4032, 3024), (3024, 4032), (2480, 3508), (1654, 2339), (800, 600)]
SIZES += [(640, 480), (1024, 1024), (512, 512), (256, 256), (1200, 630)]


def draw(rng: random.Random) -> tuple[int, int]:
    if rng.random() < 0.7:
        return rng.choice(SIZES)
    return rng.randint(64, 3000), rng.randint(64, 3000)


@pytest.mark.parametrize("formula", FAMILIES.values(), ids=FAMILIES)
def test_images_are_learned_by_their_size(formula: Formula) -> None:
    rng = random.Random(11)
    estimator = MediaEstimator()
    errors, above = [], 0
    for _ in range(120):
        vector, truth = MediaVector(), 0.0
        for _ in range(rng.randint(1, 4)):
            size = draw(rng)
            vector.add_image(size, low_detail=False)
            truth += formula(*size)
        media = tuple(vector.terms)
        estimate = estimator.estimate("m", media)
        errors.append(abs(estimate.tokens - truth) / truth)
        above += truth > estimate.bound_tokens
        # The estimate of the accompanying text has an error of about 4 %.
        noise = rng.gauss(0, 0.04) * 800
        estimator.observe("m", media, round(truth + noise), 800)

    first, later = errors[:20], errors[20:]
    assert sum(later) / len(later) < 0.15
    assert sum(first) / len(first) < 0.6
    assert above <= 6


def test_parts_of_unknown_size_start_with_the_constants_and_learn_apart() -> None:
    constants = MediaTokens(image=700, audio=900, file=3000)
    estimator = MediaEstimator(constants)
    for prompt, tokens in (
        (Prompt(b"", images=2), 1400),
        (Prompt(b"", audios=1), 900),
        (Prompt(b"", files=1), 3000),
    ):
        assert estimator.estimate("m", media_of(prompt)).tokens == tokens

    image = media_of(Prompt(b"", images=1))
    for _ in range(30):
        estimator.observe("m", image, 3000, 10)
    assert estimator.estimate("m", image).tokens == pytest.approx(3000, rel=0.05)
    assert estimator.estimate("other", image).tokens == 700
    assert estimator.estimate("m", media_of(Prompt(b"", files=1))).tokens == 3000


def test_length_counts_for_audio_and_video() -> None:
    estimator = MediaEstimator()
    rng = random.Random(2)
    for _ in range(60):
        vector, seconds = MediaVector(), rng.uniform(1, 120)
        vector.add_audio(seconds)
        estimator.observe("m", tuple(vector.terms), round(13 * seconds), 50)
    vector = MediaVector()
    vector.add_audio(60)
    estimate = estimator.estimate("m", tuple(vector.terms))
    assert estimate.tokens == pytest.approx(780, rel=0.1)


def test_a_wild_count_moves_little() -> None:
    estimator = MediaEstimator()
    vector = MediaVector()
    vector.add_image((1024, 1024), low_detail=False)
    media = tuple(vector.terms)
    for _ in range(50):
        estimator.observe("m", media, 1000, 100)
    estimator.observe("m", media, 1_000_000, 100)
    assert estimator.estimate("m", media).tokens == pytest.approx(1000, rel=0.1)


def test_what_was_learned_can_be_moved() -> None:
    one, other = MediaEstimator(), MediaEstimator()
    media = media_of(Prompt(b"", images=1))
    for _ in range(20):
        one.observe("m", media, 2500, 10)
    groups = {key: one.group(key) for key in one.group_keys()}
    other.restore({key: group for key, group in groups.items() if group is not None})
    assert other.estimate("m", media) == one.estimate("m", media)


def test_terms_of_an_image() -> None:
    assert len(image_terms(1920, 1080)) == MEDIA_TERMS.index("image of unknown size")
    one, small, medium, pixels, tiles, openai_tiles, patched = image_terms(1920, 1080)
    assert (one, small, medium, pixels) == (1.0, 0.2, 1.1, 2.0736)
    assert tiles == internvl(1920, 1080) / 256
    assert 85 + 170 * openai_tiles == openai(1920, 1080)
    assert 1000 * patched == patches(1920, 1080, 16, 1024)
