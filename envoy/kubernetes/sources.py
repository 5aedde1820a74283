"""The files that others are derived from."""

from __future__ import annotations

from pathlib import Path

ENVOY = Path(__file__).resolve().parents[1]


def envoy_yaml() -> str:
    """Return envoy.yaml without the comment at its top."""
    text = (ENVOY / "envoy.yaml").read_text()
    return text[text.index("admin:") :]


def access_log_piece(key: str) -> str:
    """Return the lines below a key at the top level of access_log.yaml."""
    text = (ENVOY / "access_log.yaml").read_text()
    head = f"\n{key}:\n"
    below = text[text.index(head) + len(head) :]
    return below.partition("\n\n")[0].rstrip("\n") + "\n"
