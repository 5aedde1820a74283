import random
from typing import Any

import pytest

from extproc.demo.phrases import CJK, OTHER_SCRIPTS
from extproc.demo.texts import Kind, write


@pytest.mark.parametrize("size", [100, 3000, 60_000])
@pytest.mark.parametrize("kind", Kind)
def test_a_text_is_about_as_long_as_asked(kind: Kind, size: int) -> None:
    written = len(write(kind, size, random.Random(3)).encode())
    # The text may be longer by one sentence or record, plus the indentation of JSON.
    assert 0.5 * size < written < 1.6 * size + 600


@pytest.mark.parametrize("kind", Kind)
def test_equal_seeds_write_equal_texts(kind: Kind) -> None:
    assert write(kind, 2000, random.Random(3)) == write(kind, 2000, random.Random(3))
    assert write(kind, 2000, random.Random(3)) != write(kind, 2000, random.Random(4))


@pytest.mark.parametrize(
    "language", [*CJK.values(), *OTHER_SCRIPTS.values()], ids=[*CJK, *OTHER_SCRIPTS]
)
def test_a_language_is_in_its_own_script(language: Any) -> None:
    text = language.sentence(random.Random(1))
    letters = [char for char in text if char.isalpha()]
    assert not any(char.isascii() for char in letters)
