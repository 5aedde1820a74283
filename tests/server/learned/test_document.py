import json
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from extproc.routing.declared_allowance import DeclaredAllowance
from extproc.routing.features import measure
from extproc.routing.mergeable import DecayedSums, snapshot
from extproc.routing.regression import TextEstimator
from extproc.routing.request import Prompt
from extproc.routing.risk import Margin
from extproc.server.learned.document import (
    MAX_GROUPS,
    VERSION,
    Document,
    decode,
    encode,
)
from extproc.server.learned.store import UnreadableDocument

README = Path(__file__).parents[3] / "extproc" / "server" / "README.md"

finite = st.floats(allow_nan=False, allow_infinity=False)


def document(sums=(1.5, 2.0)):
    group = DecayedSums(0.98, 7, np.array(sums, dtype=float))
    return Document({"ratios.1": {"prose": group}}, {"writer": 3})


def kind_of(data):
    with pytest.raises(UnreadableDocument) as found:
        decode(data)
    return found.value.kind


@given(st.lists(finite, max_size=20))
def test_every_float_comes_back_as_it_was(sums):
    decoded = decode(encode(document(sums)))
    group = decoded.components["ratios.1"]["prose"]
    assert group.sums.tolist() == sums
    assert (group.keep, group.observations) == (0.98, 7)
    assert decoded.writers == {"writer": 3}


def test_a_truncated_document_is_found_out_wherever_it_was_cut():
    data = encode(document())
    for length in range(len(data)):
        assert kind_of(data[:length]) in {"truncated", "foreign"}


def test_a_changed_byte_is_found_out_wherever_it_is():
    data = encode(document())
    for position in range(len(data)):
        changed = bytearray(data)
        changed[position] ^= 0x10
        assert kind_of(bytes(changed)) in {
            "corrupt",
            "foreign",
            "truncated",
            "future",
        }, position


@given(st.binary(max_size=200))
def test_foreign_bytes_are_never_an_error_of_another_kind(data):
    assert kind_of(data) == "foreign"


def test_a_later_version_is_named():
    head, body = encode(document()).split(b"\n", 1)
    later = {**json.loads(head), "version": VERSION + 1}
    data = json.dumps(later).encode() + b"\n" + body
    assert kind_of(data) == "future"


def with_its_checksum(body):
    head = {
        "format": "token-budget-router learned state",
        "version": 1,
        "crc32": zlib.crc32(body),
    }
    return json.dumps(head).encode() + b"\n" + body + b"\n"


def test_the_checksum_is_not_what_makes_nonsense_corrupt():
    body = b'{"components":{"ratios.1":{"prose":[0.5,1,""]}},"writers":{}}'
    assert decode(with_its_checksum(body)).components["ratios.1"]["prose"].keep == 0.5


@pytest.mark.parametrize(
    "body",
    [
        b"[]",
        b"{}",
        b'{"components": {"a": 1}}',
        b"1e999",
        b'{"components":{"a":{"b":' + b"[" * 100_000 + b'}},"writers":{}}',
        b'{"components":{"a":{"b":"\xff"}},"writers":{}}',
    ],
    ids=["list", "empty", "no groups", "number", "deep", "not UTF-8"],
)
def test_a_valid_checksum_over_nonsense_is_corrupt(body):
    assert kind_of(with_its_checksum(body)) == "corrupt"


SUMS = '"AAAAAAAA+D8="'  # 1.5


@pytest.mark.parametrize(
    "group",
    [
        '[0.5,1,"AAAAAAAA"]',
        '[0.5,1,"AAAAAAAA+H8="]',
        '[0.5,1,"AAAAAAAA8H8="]',
        f"[0.0,1,{SUMS}]",
        f"[1.5,1,{SUMS}]",
        f"[0.5,-1,{SUMS}]",
        f"[0.5,1,{SUMS},-1]",
    ],
    ids=[
        "sums that are cut off",
        "not a number",
        "infinite",
        "keeps nothing",
        "grows",
        "fewer than none",
        "an epoch before the first",
    ],
)
def test_sums_that_cannot_have_been_learned_are_corrupt(group):
    body = f'{{"components":{{"a":{{"b":{group}}}}},"writers":{{}}}}'
    assert kind_of(with_its_checksum(body.encode())) == "corrupt"


def size_of(learner, key=None):
    groups = {k: g for k, g in snapshot(learner).items() if key is None or key in k}
    return len(encode(Document({learner.component: groups}))) / 1000


def test_the_size_that_is_documented():
    estimator, margin, answers = TextEstimator(), Margin(), DeclaredAllowance()
    features = measure(Prompt(b"some text to learn from"), 23)
    estimator.observe("m", "prose", features, 6)
    margin.observe("m", "prose", 0.1, 0.05, exceeded=False)
    answers.observe("m", "prose", 900, 20, truncated=False, reserved_tokens=900)
    text = README.read_text().partition("## Learned state")[2]
    assert f"{len(snapshot(estimator)['m'].sums):,} numbers" in text
    assert f"({size_of(estimator) / 1000:.2f} MB" in text
    assert f"{size_of(margin, ':m'):.1f} kB of its bound" in text
    assert f"{size_of(answers, 'category'):.0f} kB for each category" in text


def test_groups_that_are_kept_are_bounded():
    group = DecayedSums(0.98, 7, np.zeros(1))
    groups = {str(number): group for number in range(MAX_GROUPS + 10)}
    decoded = decode(encode(Document({"ratios.1": groups})))
    assert len(decoded.components["ratios.1"]) == MAX_GROUPS
