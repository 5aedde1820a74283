import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from extproc.routing.byte_classes import CLASS_TABLE
from extproc.routing.features import measure
from extproc.routing.regressors import NO_TERM, TERMS, VECTOR_TERMS
from extproc.routing.request import Prompt
from extproc.routing.scripts import SPLITS


def named(prompt: Prompt) -> dict[str, float]:
    vector = measure(prompt, 0).terms
    return {TERMS[i]: float(vector[i]) for i in np.flatnonzero(vector)}


def test_names_are_distinct() -> None:
    assert len(set(TERMS)) == len(TERMS) == 271
    assert len(VECTOR_TERMS) <= NO_TERM


def test_words_digits_and_ends_are_told_apart() -> None:
    assert named(Prompt(b"an 42")) == {
        "template": 1,
        "message": 1,
        "lower after newline": 1,
        "lower after lower_au": 1,
        "space after lower": 1,
        "digit after space": 1,
        "digit after digit": 1,
    }


def test_a_character_outside_ascii_counts_once_by_script() -> None:
    counts = named(Prompt("漢字 ไทย".encode()))
    assert counts["han"] == 2
    assert counts["thai"] == 3
    assert counts["cjk after other"] == counts["cjk after script"] == 1
    assert counts["indic after space"] == 1


def test_tools_and_messages_are_terms_of_their_own() -> None:
    plain = named(Prompt(b"x", messages=3))
    tools = named(Prompt(b"x", messages=3, tools_text=b'[{"a": "bc"}]', tools=2))
    assert plain["message"] == tools["message"] == 3
    assert tools["tools"] == 1
    assert tools["tool"] == 2
    assert tools["tools word"] == 2
    assert tools["tools letter"] == 1
    assert {k: v for k, v in tools.items() if not k.startswith("tool")} == plain


@given(st.text(max_size=300))
def test_every_ascii_byte_and_every_character_is_in_a_term(text: str) -> None:
    encoded = text.encode(errors="replace")
    counts = named(Prompt(encoded))
    ascii_bytes = sum(byte < 0x80 for byte in encoded)
    characters = sum(char > "\x7f" for char in encoded.decode())
    after = sum(n for term, n in counts.items() if " after " in term)
    derived = TERMS[TERMS.index("run of spaces") :]
    by_script = sum(counts.values()) - after - 2
    by_script -= sum(counts.get(term, 0.0) for term in derived)
    runs = sum(n for term, n in counts.items() if term.startswith("run of "))
    assert after + runs == ascii_bytes + characters
    by_script += counts.get("run of characters", 0.0)
    assert by_script == pytest.approx(characters)


@pytest.mark.parametrize(
    ("text", "term"),
    [
        ("ਪੰਜਾਬੀ", "gurmukhi"),
        ("ગુજરાતી", "gujarati"),
        ("ଓଡ଼ିଆ", "odia"),
        ("தமிழ்", "tamil"),
        ("తెలుగు", "telugu"),
        ("ಕನ್ನಡ", "kannada"),
        ("മലയാളം", "malayalam"),
        ("සිංහල", "sinhala"),
        ("ລາວ", "lao"),
        ("བོད", "tibetan"),
        ("ꦗꦮꦶ", "javanese"),
        ("ꆈꌠ", "yi"),
        ("ᏣᎳᎩ", "cherokee"),
        ("ᠮᠣᠩ", "mongolian"),
        ("⠓⠑⠇⠇⠕", "braille"),
        ("┌─┐", "box"),
        ("ⵜⵉⴼ", "tifinagh"),
        ("ПРАВДА", "cyrillic_upper"),
        ("ΕΛΛΑΔΑ", "greek_upper"),
        ("𐑖𐑱𐑝", "ancient"),
        ("𝐀𝐛𝐜", "math_letter"),
    ],
)
def test_scripts_under_one_lead_byte_have_terms_of_their_own(
    text: str, term: str
) -> None:
    counts = named(Prompt(text.encode()))
    assert counts[term] == len(text)


ENGLISH = b"the cat that sat there had eaten the other thing with the teeth " * 9
SWAHILI = b"habari ya asubuhi rafiki yangu mpendwa tunakwenda sokoni kununua " * 9


def test_languages_in_ascii_letters_are_told_from_english() -> None:
    assert "foreign letter" not in named(Prompt(ENGLISH))
    counts = named(Prompt(SWAHILI))
    assert counts["foreign letter"] > 400
    assert counts["foreign word"] > 60
    assert "foreign letter" not in named(Prompt(b"habari"))  # too short to tell


def test_scripts_begin_and_end_at_the_boundaries_of_classes() -> None:
    for lead, parts in SPLITS.items():
        names: dict[int, set[str]] = {}
        for trail in range(0x80, 0xC0):
            inside = [name for first, last, name in parts if first <= trail <= last]
            assert len(inside) <= 1, (lead, trail)
            names.setdefault(CLASS_TABLE[trail], set()).add("".join(inside))
        assert all(len(each) == 1 for each in names.values()), lead
