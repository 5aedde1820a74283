"""The JSON to parse for a body: the body itself, or its elided JSON."""

from __future__ import annotations

from typing import Protocol


class Source(Protocol):
    """The JSON to parse for a body: the body itself, or its elided JSON.

    Texts from an elided body may contain references; only the source of a text can read
    and measure its references.
    """

    @property
    def content(self) -> bytes | memoryview:
        """The JSON to parse."""

    @property
    def body_bytes(self) -> int:
        """The size of the original body."""

    def excerpt(self, text: str) -> tuple[bytes, int]:
        """An excerpt of a text in UTF-8, and the number of bytes that it omits."""

    def head(self, text: str, size: int) -> str:
        """Roughly the first ``size`` characters of a text."""

    def size_bytes(self, text: str) -> int:
        """A text's size in UTF-8."""

    def refers(self, text: str) -> bool:
        """Whether a text contains a reference."""

    def items(self, text: str) -> int:
        """The number of items in the list that a reference replaces; otherwise 0."""


class Whole:
    """A body without elided parts."""

    __slots__ = ("content",)

    def __init__(self, content: bytes | memoryview) -> None:
        self.content: bytes | memoryview = content

    @property
    def body_bytes(self) -> int:
        return len(self.content)

    def excerpt(self, text: str) -> tuple[bytes, int]:
        return text.encode(), 0

    def head(self, text: str, size: int) -> str:
        return text[:size]

    def size_bytes(self, text: str) -> int:
        return len(text.encode())

    def refers(self, text: str) -> bool:
        return False

    def items(self, text: str) -> int:
        return 0
