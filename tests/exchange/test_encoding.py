import gzip
import os
import random
import zlib
from collections.abc import Callable

import brotli
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from extproc.exchange.encoding import (
    MAX_MEMBERS,
    MAX_ZSTD_BLOCKS,
    decode_content,
    decode_in_steps,
)

LIMIT = 1 << 16
NOISE = random.Random(1).randbytes(20_000)


def raw_deflate(body: bytes) -> bytes:
    stream = zlib.compressobj(wbits=-15)
    return stream.compress(body) + stream.flush()


ENCODERS: dict[str, Callable[[bytes], bytes]] = {
    "gzip": gzip.compress,
    "x-gzip": gzip.compress,
    "deflate": zlib.compress,
    "br": brotli.compress,
    "zstd": zstandard.compress,
}
ENCODINGS = pytest.mark.parametrize("encoding", ENCODERS)


@ENCODINGS
@settings(max_examples=20)
@given(body=st.binary(max_size=2000))
def test_decodes_what_was_encoded(encoding: str, body: bytes) -> None:
    assert decode_content(ENCODERS[encoding](body), encoding, LIMIT) == body


def test_no_encoding_and_identity_leave_the_body_alone() -> None:
    assert decode_content(b"text", "", LIMIT) == b"text"
    assert decode_content(b"text", "identity", LIMIT) == b"text"


def test_deflate_without_the_zlib_header_is_read_too() -> None:
    assert decode_content(raw_deflate(b"text " * 99), "deflate", LIMIT) == b"text " * 99


def test_deflate_that_looks_like_zlib_at_first_is_read_from_its_beginning() -> None:
    """If read as zlib, the data would be a block of 65,534 bytes followed by garbage."""
    data = bytes(65_530) + b"\x07" + bytes(4)
    second = b"\0" + len(data).to_bytes(2, "little")
    second += (len(data) ^ 0xFFFF).to_bytes(2, "little") + data
    body = b"\x78\x01\0\xfe\xff\x01" + second + b"\x01\0\0\xff\xff"

    assert zlib.decompress(body, wbits=-15) == b"\x01" + data
    assert decode_content(body, "deflate", 2 * LIMIT) == b"\x01" + data


def test_encodings_are_undone_from_the_last_to_the_first() -> None:
    body = brotli.compress(gzip.compress(b"text"))

    assert decode_content(body, "GZIP, Br", LIMIT) == b"text"


def test_more_than_two_encodings_are_refused() -> None:
    body = gzip.compress(gzip.compress(gzip.compress(b"text")))

    assert decode_content(body, "gzip, gzip, gzip", LIMIT) is None


@pytest.mark.parametrize("encoding", ["compress", "aws-chunked", "gzip;q=1", "\xff"])
def test_unknown_encodings_are_refused(encoding: str) -> None:
    assert decode_content(b"text", encoding, LIMIT) is None


@ENCODINGS
def test_a_body_cut_anywhere_is_refused(encoding: str) -> None:
    whole = ENCODERS[encoding](bytes(range(256)) * 4)

    for cut in range(1, len(whole)):
        assert decode_content(whole[:cut], encoding, LIMIT) is None, cut


@ENCODINGS
def test_a_body_that_is_something_else_is_refused(encoding: str) -> None:
    assert decode_content(b'{"model": "m"}', encoding, LIMIT) is None


@ENCODINGS
def test_a_body_decodes_up_to_the_limit_and_not_a_byte_more(encoding: str) -> None:
    bomb = ENCODERS[encoding](bytes(LIMIT + 1))

    assert decode_content(ENCODERS[encoding](bytes(LIMIT)), encoding, LIMIT) == bytes(
        LIMIT
    )
    assert decode_content(bomb, encoding, LIMIT) is None


def test_a_bomb_in_an_inner_layer_is_refused() -> None:
    bomb = gzip.compress(gzip.compress(bytes(100 * LIMIT)))

    assert decode_content(bomb, "gzip, gzip", LIMIT) is None


def test_a_zstd_window_larger_than_http_allows_is_refused() -> None:
    parameters = zstandard.ZstdCompressionParameters(window_log=25)
    stream = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
    body = stream.compress(bytes(100)) + stream.flush()

    assert decode_content(body, "zstd", LIMIT) is None


@pytest.mark.parametrize("encoding", ["gzip", "zstd"])
def test_members_in_a_row_are_one_body(encoding: str) -> None:
    body = ENCODERS[encoding](b"one,") + ENCODERS[encoding](b"two")

    assert decode_content(body, encoding, LIMIT) == b"one,two"


@pytest.mark.parametrize("encoding", ["gzip", "zstd"])
def test_very_many_members_are_refused(encoding: str) -> None:
    member = ENCODERS[encoding](b"")

    assert decode_content(member * MAX_MEMBERS, encoding, LIMIT) == b""
    assert decode_content(member * (MAX_MEMBERS + 1), encoding, LIMIT) is None


def test_members_that_are_skipped_count_as_well() -> None:
    skipped = b"\x5f\x2a\x4d\x18\x03\0\0\0abc"
    body = skipped + zstandard.compress(b"text") + skipped

    assert decode_content(body, "zstd", LIMIT) == b"text"
    assert decode_content(body[:-1], "zstd", LIMIT) is None
    assert decode_content(skipped * (MAX_MEMBERS + 1), "zstd", LIMIT) is None


def zstd_frame(*blocks: bytes) -> bytes:
    """Return a zstd frame of raw blocks (RFC 8878), built by hand."""
    last = len(blocks) - 1
    return b"\x28\xb5\x2f\xfd\0\0" + b"".join(
        (len(block) << 3 | (number == last)).to_bytes(3, "little") + block
        for number, block in enumerate(blocks)
    )


@pytest.mark.parametrize("encoding", ["gzip", "br", "zstd"])
def test_what_follows_the_body_is_not_passed_over(encoding: str) -> None:
    # One of these sizes exactly fills the input of one step.
    for size in range(16_376, 16_386):
        body = ENCODERS[encoding](NOISE[:size])

        assert decode_content(body, encoding, LIMIT) == NOISE[:size]
        assert decode_content(body + b"x", encoding, LIMIT) is None


def test_very_many_blocks_are_refused() -> None:
    few = zstd_frame(*[b""] * (MAX_ZSTD_BLOCKS - 2), b"text")

    assert decode_content(few, "zstd", LIMIT) == b"text"
    assert decode_content(few + few, "zstd", LIMIT) is None
    assert sum(1 for _ in decode_in_steps(few, "zstd", LIMIT)) > 8


@pytest.mark.parametrize(
    "body",
    [
        zstandard.compress(b"") * 100_000,
        zstandard.compress(b"x") * 100_000,
        zstd_frame(*[b""] * 300_000),
    ],
    ids=["empty frames", "frames of one byte", "empty blocks"],
)
def test_a_flood_of_pieces_is_refused_by_their_heads(body: bytes) -> None:
    """The decoder of zstd would process all of these pieces in one step."""
    steps = sum(1 for _ in decode_in_steps(body, "zstd", len(body)))

    assert steps * 2048 <= MAX_ZSTD_BLOCKS


@pytest.mark.parametrize(
    "compressor",
    [
        zstandard.ZstdCompressor(write_checksum=True),
        zstandard.ZstdCompressor(write_content_size=False),
    ],
    ids=["with a checksum", "without its size"],
)
def test_zstd_frames_of_every_kind_are_read(
    compressor: zstandard.ZstdCompressor,
) -> None:
    text = bytes(range(256)) * 4096
    body = compressor.compress(text)

    assert decode_content(body + body, "zstd", 4 * len(text)) == text + text
    assert decode_content(body + body[:-1], "zstd", 4 * len(text)) is None


@ENCODINGS
@pytest.mark.parametrize("body", [bytes(8 << 20), os.urandom(1 << 19)], ids=["0", "?"])
def test_a_step_decodes_no_more_than_a_bounded_piece(
    encoding: str, body: bytes
) -> None:
    decoding = decode_in_steps(ENCODERS[encoding](body), encoding, len(body))

    steps = sum(1 for _ in decoding)

    assert steps >= len(body) / (1 << 19)
    assert steps > 8


@settings(max_examples=100)
@given(body=st.binary(max_size=200), encoding=st.sampled_from(list(ENCODERS)))
def test_no_bytes_raise(body: bytes, encoding: str) -> None:
    decoded = decode_content(body, encoding, LIMIT)

    assert decoded is None or len(decoded) <= LIMIT


@ENCODINGS
@settings(max_examples=40)
@given(flip=st.integers(0, 10_000), value=st.integers(0, 255))
def test_no_corrupted_body_raises(encoding: str, flip: int, value: int) -> None:
    body = bytearray(ENCODERS[encoding](b"some text, " * 40))
    body[flip % len(body)] = value

    decode_content(bytes(body), encoding, LIMIT)
