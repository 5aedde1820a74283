import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from extproc.routing.arithmetic import count_terms
from extproc.routing.byte_classes import CLASS_TABLE, ByteClass
from extproc.routing.features import SAMPLE_BYTES, measure
from extproc.routing.regressors import (
    CHARACTER_RUN,
    REPETITION,
    TERMS,
    TEXT_COUNTED,
    TEXT_PLACES,
    TOOLS_COUNTED,
    VECTOR_TERMS,
    byte_run,
    character_run,
)
from extproc.routing.request import Prompt


def test_counts_classes_and_indentation() -> None:
    features = measure(Prompt(b"if a:\n    b = 12"), 5)
    counted = {ByteClass(i): n for i, n in enumerate(features.classes) if n}
    assert counted == {
        ByteClass.LOWER: 2,
        ByteClass.LOWER_AU: 1,
        ByteClass.LOWER_I: 1,
        ByteClass.SPACE: 7,
        ByteClass.STOP: 1,
        ByteClass.NEWLINE: 1,
        ByteClass.RULE: 1,
        ByteClass.DIGIT: 2,
    }
    assert features.indent_bytes == 3


@pytest.mark.parametrize(
    ("text", "lead"),
    [
        ("é", ByteClass.LATIN_ACCENT),
        ("ő", ByteClass.LATIN_FAR),
        ("λ", ByteClass.GREEK),
        ("ж", ByteClass.CYRILLIC),
        ("щ", ByteClass.CYRILLIC_LATE),
        ("қ", ByteClass.CYRILLIC_FAR),
        ("ա", ByteClass.ARMENIAN),
        ("پ", ByteClass.ARABIC),
        ("گ", ByteClass.ARABIC_FAR),
        ("ש", ByteClass.HEBREW),
        ("م", ByteClass.ARABIC),
        ("ह", ByteClass.INDIC),
        ("ế", ByteClass.SOUTHEAST),
        ("—", ByteClass.TYPOGRAPHIC),
        ("の", ByteClass.KANA),
        ("漢", ByteClass.HAN),
        ("ꀀ", ByteClass.HANGUL_FIRST),
        ("한", ByteClass.HANGUL),
        ("，", ByteClass.FULL_WIDTH),
        ("🙂", ByteClass.ASTRAL),
    ],
)
def test_tells_scripts_apart_by_their_lead_byte(text: str, lead: ByteClass) -> None:
    encoded = text.encode()
    classes = measure(Prompt(encoded), len(encoded)).classes
    assert classes[lead] == 1
    assert sum(classes) == len(encoded)


def test_every_byte_has_a_class() -> None:
    assert len(CLASS_TABLE) == 256
    assert set(CLASS_TABLE) == set(ByteClass)


@given(st.binary(max_size=2000))
def test_counts_every_byte_once(text: bytes) -> None:
    features = measure(Prompt(text), len(text))
    assert sum(features.classes) == len(text)
    assert features.terms.min() >= 0
    assert features.terms[TEXT_COUNTED].sum() <= len(text)


def test_tools_are_counted_apart() -> None:
    features = measure(Prompt(b"hi", tools_text=b'[{"type":1}]', tools=1), 30)
    assert features.classes[ByteClass.BRACKET] == 0
    assert features.terms[TOOLS_COUNTED].sum() == features.tools_bytes == 12


def test_long_text_is_sampled_to_the_right_size() -> None:
    text = b"".join(b"line %d of a long text\n" % n for n in range(40_000))
    assert len(text) > 8 * SAMPLE_BYTES
    sampled = measure(Prompt(text), len(text))
    assert sampled.text_bytes == len(text)
    assert sum(sampled.classes) == len(text)
    pieces = [text[i : i + SAMPLE_BYTES] for i in range(0, len(text), SAMPLE_BYTES)]
    counts = [measure(Prompt(piece), 0).classes for piece in pieces]
    expected = [sum(column) for column in zip(*counts, strict=True)]
    assert sampled.classes == pytest.approx(expected, abs=0.02 * len(text))


@pytest.mark.parametrize(
    ("text", "runs", "repetitions"),
    [
        ("=" * 500, {ByteClass.RULE: 499}, 0),
        (
            "a" * 300 + "\n" + "7" * 300,
            {ByteClass.LOWER_AU: 299, ByteClass.DIGIT: 299},
            0,
        ),
        ("ha " * 300, {}, 299),
        ("é " * 300, {}, 299),
        ("A sentence of ten words, none of which comes again. " * 1, {}, 0),
        ("Title\n=====\nshort rules\n-----\nare no runs of marks\n", {}, 0),
    ],
    ids=["one mark", "two runs", "one word", "one accent", "prose", "short"],
)
def test_runs_and_repeated_words_are_counted(
    text: str, runs: dict[int, int], repetitions: int
) -> None:
    features = measure(Prompt(text.encode()), 0)
    expected = np.zeros(len(VECTOR_TERMS))
    count_terms(text.encode(), TEXT_PLACES, expected)
    for byte_class, size in runs.items():
        run, place = byte_run(byte_class)
        expected[place] -= size
        expected[run] += size
    assert features.terms[TEXT_COUNTED].tolist() == expected[TEXT_COUNTED].tolist()
    assert features.terms[REPETITION] == repetitions


@pytest.mark.parametrize("character", ["é", "─", "あ", "🙂"])
def test_runs_of_a_character_of_several_bytes_are_counted(character: str) -> None:
    text = f"before {character * 200} after".encode()
    features = measure(Prompt(text), 0)
    expected = np.zeros(len(VECTOR_TERMS))
    count_terms(text, TEXT_PLACES, expected)
    for place in character_run(character.encode()):
        expected[place] -= 199
    expected[CHARACTER_RUN] = 199
    assert features.terms[TEXT_COUNTED].tolist() == expected[TEXT_COUNTED].tolist()
    assert features.terms[REPETITION] == 0


def test_each_kind_of_run_has_a_term() -> None:
    runs = {
        " ": "run of spaces",
        "x": "run of letters",
        "A": "run of letters",
        "0": "run of digits",
        "#": "run of marks",
        "\n": "run of marks",
    }
    for byte, name in runs.items():
        features = measure(Prompt(byte.encode() * 100), 0)
        assert features.terms[TERMS.index(name)] == 99, name


@given(
    st.builds(
        lambda unit, times, rest: unit * times + rest,
        st.binary(min_size=1, max_size=9),
        st.integers(0, 9000),
        st.binary(max_size=90),
    )
)
def test_what_repeats_is_never_more_than_the_text(text: bytes) -> None:
    features = measure(Prompt(text), 0)
    assert features.terms.min() >= 0
    # Counts from a sample are rounded: each may exceed its exact value by half a byte.
    most = len(text) + len(VECTOR_TERMS) / 2
    assert features.terms[TEXT_COUNTED].sum() <= most
    assert 0 <= features.terms[REPETITION] <= len(text)
    assert features.terms.min() >= 0


def test_repetitions_of_a_long_text_are_scaled_to_its_size() -> None:
    features = measure(Prompt(b"=" * 1_000_000), 0)
    assert features.terms[TERMS.index("run of marks")] == pytest.approx(
        1_000_000, rel=0.01
    )
