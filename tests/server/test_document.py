import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from extproc.routing.learned import Group
from extproc.server.document import Document, decode, encode
from extproc.server.store import UnreadableDocument

finite = st.floats(allow_nan=False, allow_infinity=False)


def document(sums=(1.5, 2.0)):
    group = Group(0.98, 7, np.array(sums, dtype=float))
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
    later = {**json.loads(head), "version": 2}
    data = json.dumps(later).encode() + b"\n" + body
    assert kind_of(data) == "future"


@pytest.mark.parametrize("body", [b"[]", b"{}", b'{"components": {"a": 1}}', b"1e999"])
def test_a_valid_checksum_over_nonsense_is_corrupt(body):
    import zlib

    head = {
        "format": "token-budget-router learned state",
        "version": 1,
        "crc32": zlib.crc32(body),
    }
    assert kind_of(json.dumps(head).encode() + b"\n" + body + b"\n") == "corrupt"
