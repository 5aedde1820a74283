"""The optional C decoder (_fast_decode.c). Its specification is fast_decode.py."""

INTERFACE: int
"""Version of the functions' arguments and results."""

def read_headers(
    data: bytes, wanted: dict[bytes, str], /
) -> tuple[dict[str, str], bool, int, int] | None:
    """Read a serialized ``ProcessingRequest`` in one of the headers phases.

    See ``fast_decode.read_headers_in_python``. Some damaged messages that the function
    in Python reads give None here.
    """
