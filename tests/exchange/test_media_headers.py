"""Sizes and durations from the first bytes of media, and from data: URLs in bodies."""

import base64
import json
import struct
import zlib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from extproc.exchange.body_parser import parse_request
from extproc.exchange.media_headers import (
    audio_seconds,
    decode_head,
    image_size,
    video_seconds,
)
from extproc.routing.media import MEDIA_TERMS
from extproc.routing.request import Request

W, H = 1170, 2532


def png(width: int = W, height: int = H) -> bytes:
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    crc = struct.pack(">I", zlib.crc32(header))
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + header + crc + b"\0" * 400


def jpeg(before: bytes = b"") -> bytes:
    app0 = b"\xff\xe0" + struct.pack(">H", 16) + b"JFIF\0" + b"\1" * 9
    frame = b"\xff\xc2" + struct.pack(">HBHHB", 17, 8, H, W, 3) + b"\0" * 9
    return b"\xff\xd8" + app0 + before + frame + b"\0" * 400


EXIF = b"\xff\xe1" + struct.pack(">H", 3002) + b"\xff\xc0" * 1500
IMAGES = {
    "png": png(),
    "gif": b"GIF89a" + struct.pack("<HH", W, H) + b"\0" * 40,
    "bmp": b"BM" + b"\0" * 16 + struct.pack("<ii", W, -H) + b"\0" * 40,
    "webp, lossy": b"RIFF\0\0\0\0WEBPVP8 " + b"\0" * 10 + struct.pack("<HH", W, H),
    "webp, lossless": b"RIFF\0\0\0\0WEBPVP8L\0\0\0\0/"
    + struct.pack("<I", W - 1 | H - 1 << 14),
    "webp, extended": b"RIFF\0\0\0\0WEBPVP8X"
    + b"\0" * 8
    + (W - 1).to_bytes(3, "little")
    + (H - 1).to_bytes(3, "little"),
    "jpeg": jpeg(),
    "jpeg with a thumbnail": jpeg(EXIF),
    "jpeg with fill bytes": jpeg(b"\xff\xff"[:1]),
}


@pytest.mark.parametrize("head", IMAGES.values(), ids=IMAGES)
def test_an_images_size(head: bytes) -> None:
    assert image_size(head) == (W, H)


@pytest.mark.parametrize(
    "head", [b"", b"GIF89a", png(0, 5), png(1 << 30, 5), jpeg(b"x"), png()[:20]]
)
def test_a_size_that_is_not_there_is_not_known(head: bytes) -> None:
    assert image_size(head) is None


@given(st.binary(max_size=60), st.sampled_from([*IMAGES.values(), b"RIFF....WAVE"]))
def test_no_bytes_raise(tail: bytes, head: bytes) -> None:
    for cut in range(0, 40, 3):
        piece = head[:cut] + tail
        image_size(piece)
        audio_seconds(piece, 1000)
        video_seconds(piece)


@pytest.mark.parametrize("head", [b"ID3", b"ID3\4\0\0\0\0\0", b"RIFF....WAVEfmt "])
def test_a_length_that_is_cut_off_is_not_known(head: bytes) -> None:
    assert audio_seconds(head, 1000) is None


def test_the_length_of_audio_and_video() -> None:
    wav = b"RIFF\0\0\0\0WAVEfmt " + struct.pack(
        "<IHHIIHH", 16, 1, 1, 16000, 32000, 2, 16
    )
    assert audio_seconds(wav, 44 + 32000 * 7) == 7
    mp3 = b"ID3\4\0\0\0\0\0\0" + b"\xff\xfb\x90\x00"  # 128 kbit/s
    assert audio_seconds(mp3, 10 + 16000 * 5) == 5
    mp4 = b"\0\0\0\x18ftypmp42" + b"moov\0\0\0lmvhd" + b"\0" * 12
    assert video_seconds(mp4 + struct.pack(">II", 600, 7200)) == 12
    assert audio_seconds(b"OggS", 1000) is None
    assert video_seconds(mp4) is None


def test_base64_is_decoded_with_or_without_its_prefix() -> None:
    encoded = base64.b64encode(png()).decode()
    for text in (encoded, f"data:image/png;base64,{encoded}", encoded[:401]):
        assert image_size(decode_head(text)) == (W, H)
    assert decode_head("https://example.org/a.png") == b""


URL = "data:image/png;base64," + base64.b64encode(png() + b"\0" * 2000).decode()
BARE = URL.partition(",")[2]
PARTS: dict[str, Any] = {
    "chat": {"type": "image_url", "image_url": {"url": URL}},
    "simple": {"image_url": URL, "uuid": "1"},
    "responses": {"type": "input_image", "image_url": URL, "detail": "high"},
    "anthropic": {
        "type": "image",
        "source": {"type": "base64", "media_type": "image/png", "data": BARE},
    },
    "tool result": {"type": "tool_result", "content": [{"type": "image", "x": URL}]},
    "unknown": {"type": "picture_of_tomorrow", "body": URL},
}


def terms(part: Any, padding: int = 0) -> dict[str, float]:
    messages = [{"role": "user", "content": [part, {"type": "text", "text": "?"}]}]
    body = json.dumps({"messages": messages, "metadata": "x" * padding}).encode()
    request = parse_request("/v1/chat/completions", body)
    assert isinstance(request, Request)
    media = request.prompt.media
    return {name: x for name, x in zip(MEDIA_TERMS, media, strict=True) if x}


@pytest.mark.parametrize("padding", [0, 400_000], ids=["small", "large"])
@pytest.mark.parametrize("part", PARTS.values(), ids=PARTS)
def test_an_image_in_a_body_has_its_size(part: Any, padding: int) -> None:
    assert terms(part, padding)["megapixels"] == pytest.approx(W * H / 1e6)


def test_an_address_or_low_detail_has_a_term_of_its_own() -> None:
    address = {"type": "image_url", "image_url": {"url": "https://example.org/a.png"}}
    assert terms(address) == {"image of unknown size": 1.0}
    low = {"type": "image_url", "image_url": {"url": URL, "detail": "low"}}
    assert terms(low) == {"image of low detail": 1.0}
