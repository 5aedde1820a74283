"""The router's own decoding loop, built on hpack's parts, decodes as hpack does."""

import pytest
from hpack import Decoder, Encoder, HPACKError
from hpack.hpack import decode_integer
from hypothesis import example, given, settings
from hypothesis import strategies as st

from extproc.rpc.hpack import HpackDecoder

FIELD_LISTS = st.lists(
    st.tuples(
        st.sampled_from([":path", "x-a", "x-b", "content-type", "x" * 200]),
        st.sampled_from(["", "/", "application/grpc", "é", "v" * 300]),
    ),
    max_size=5,
)
FLIPS = st.lists(st.tuples(st.integers(0, 400), st.integers(1, 255)), max_size=2)
BLOCKS = st.lists(
    st.tuples(FIELD_LISTS, st.booleans(), st.sampled_from([None, 0, 64, 4096]), FLIPS),
    max_size=6,
)


def outcome(decode, block: bytes) -> list | str:
    try:
        return [(bytes(name), bytes(value)) for name, value in decode(block)]
    except HPACKError as error:
        return type(error).__name__


def size_updates(block: bytes) -> int:
    """Return the number of table size updates at the start of a block."""
    count = 0
    while block and block[0] & 0xE0 == 0x20:
        count += 1
        try:
            block = block[decode_integer(block, 5)[1] :]
        except HPACKError:  # the last one is incomplete
            break
    return count


@settings(deadline=None)
@given(BLOCKS)
@example([([], False, 64, [(1, 128)])])
def test_blocks_with_faults_decode_as_hpack_decodes_them(blocks):
    encoder, theirs, ours = Encoder(), Decoder(), HpackDecoder(65_536)
    for fields, huffman, table_bytes, flips in blocks:
        if table_bytes is not None:
            encoder.header_table_size = table_bytes
        block = bytearray(encoder.encode(fields, huffman=huffman))
        for at, bits in flips:
            if block:
                block[at % len(block)] ^= bits
        data = bytes(block)
        expected = outcome(lambda b: theirs.decode(b, raw=True), data)
        found = outcome(ours.decode, data)
        if isinstance(found, str) and size_updates(data) > 2:
            return  # hpack accepts any number of them, RFC 7541 (4.2) at most two
        assert found == expected or (
            isinstance(found, str) and isinstance(expected, str)
        )
        if isinstance(expected, str):
            return


@settings(deadline=None)
@given(st.lists(st.binary(max_size=40), max_size=4))
def test_noise_decodes_as_hpack_decodes_it(blocks):
    theirs, ours = Decoder(), HpackDecoder(65_536)
    for block in blocks:
        expected = outcome(lambda b: theirs.decode(b, raw=True), block)
        found = outcome(ours.decode, block)
        if isinstance(expected, str):
            assert isinstance(found, str)
            return
        if isinstance(found, str):
            # Only the router rejects a block with more than two changes of the table
            # size.
            assert sum(byte & 0xE0 == 0x20 for byte in block) > 2
            return
        assert found == expected


@pytest.mark.parametrize(
    ("block", "changed"),
    [
        (b"\x83", False),
        (b"\x00\x01a\x01b", False),
        (b"\x10\x01a\x01b", False),
        (b"\x40\x01a\x01b", True),
        (b"\x20", True),
        (b"\x3f\xe1\x1f", True),
        (b"", False),
    ],
)
def test_what_changes_the_table_is_noted(block, changed):
    decoder = HpackDecoder(65_536)
    decoder.decode(b"\x40\x01z\x01z")
    decoder.decode(block)
    assert decoder.changed is changed


def test_what_is_remembered_of_huffman_strings_is_bounded():
    encoder, decoder = Encoder(), HpackDecoder(65_536)
    for n in range(2_000):
        value = f"value number {n}"
        assert (
            dict(decoder.decode(encoder.encode([("x-a", value)])))[b"x-a"]
            == value.encode()
        )
    assert len(decoder._strings) <= 256
