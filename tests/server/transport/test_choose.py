"""The limits of the transports that the configuration selects, and their documentation."""

from pathlib import Path

import pytest

from extproc.config import ServerConfig
from extproc.rpc.headers import HARD_LIMIT_FACTOR
from extproc.rpc.limits import (
    CONTROL_FRAMES_PER_WORK,
    MAX_SETTINGS,
    MIB,
    Held,
)
from extproc.server.transport import native
from extproc.server.transport.choose import limits_of
from extproc.server.transport.listener import HANDSHAKE_S, SPARE_DESCRIPTORS

KIB = 1024
PAGE = Path(__file__).parents[3] / "extproc/server/README.md"


@pytest.mark.parametrize(
    ("max_body_bytes", "largest_bytes"),
    [(MIB, 32 * MIB), (32 * MIB, 32 * MIB), (2_000_000_000, 2_000_000_000)],
)
def test_a_body_that_envoy_may_send_fits_into_a_message(
    max_body_bytes: int, largest_bytes: int
) -> None:
    limits = limits_of(ServerConfig(max_body_bytes=max_body_bytes))

    assert limits.max_message_bytes == largest_bytes + 64 * KIB
    assert limits.max_buffered_bytes == 2 * limits.max_message_bytes


def test_the_documented_limits_are_those_of_the_code() -> None:
    limits = limits_of(ServerConfig())
    section = PAGE.read_text(encoding="utf-8").partition("### Limits on one peer")[2]
    table = dict(
        line.split(" | ")[:2]
        for line in section.partition("\n#")[0].splitlines()
        if line.startswith("| ")
    )
    whole, more = divmod(limits.max_message_bytes, MIB)
    metadata_kib = limits.max_header_list_bytes // KIB

    assert native.INTRODUCTION_S == HANDSHAKE_S
    assert table == {
        "| what": "limit (`native`)",
        "| connections": f"`server.max_connections`, with {SPARE_DESCRIPTORS} "
        "descriptors reserved",
        "| a TLS handshake; preface and SETTINGS": f"{HANDSHAKE_S:.0f} s each",
        "| a connection without a stream": f"{native.IDLE_S / 60:.0f} minutes",
        "| streams of a connection": f"{limits.max_concurrent_streams:,}",
        "| metadata": f"{metadata_kib} KiB; {metadata_kib * HARD_LIMIT_FACTOR} KiB",
        "| a message": f"{whole} MiB, or `server.max_body_bytes` if larger, and "
        f"{more // KIB} KiB more",
        "| incomplete messages": "twice the largest message a connection, "
        f"{Held().limit_bytes // MIB} MiB a process",
        "| a message without progress": f"{limits.message_s:.0f} s",
        "| an incomplete header block, or other frame except DATA": (
            f"{limits.header_block_s:.0f} s"
        ),
        "| unread replies": f"{limits.max_queued_bytes // MIB} MiB; "
        f"{native.STALL_S:.0f} s",
        "| frames without content": f"burst of {limits.control_burst:,}, "
        f"{limits.control_per_s:.0f} a second, {CONTROL_FRAMES_PER_WORK} a message",
        "| streams reset unanswered, or for a protocol error": (
            f"burst of {limits.reset_burst:,}, {limits.resets_per_s:.0f} a second, "
            "1 an answer"
        ),
        "| entries of a SETTINGS frame": str(MAX_SETTINGS),
        "| uninterrupted work": f"{native.TURN_S * 1000:.0f} ms, and one read of "
        f"{native._READ_BYTES // KIB} KiB",
    }
