"""The JSON that is parsed of a body: all of it, or what is left when it is elided."""

from __future__ import annotations

from typing import Protocol


class Source(Protocol):
    """What is parsed of a body: the whole, or its elided JSON.

    Texts from an elided body may hold references to what is left out; only a source
    can read and measure them.
    """

    @property
    def content(self) -> bytes | memoryview:
        """JSON."""

    @property
    def body_bytes(self) -> int:
        """The body's size."""

    def excerpt(self, text: str) -> tuple[bytes, int]:
        """A text from the JSON in UTF-8, and how many of its bytes are missing."""

    def head(self, text: str, size: int) -> str:
        """About the first ``size`` characters of a text."""

    def size_bytes(self, text: str) -> int:
        """A text's size in UTF-8."""

    def refers(self, text: str) -> bool:
        """Whether a text holds a reference to what is left out."""

    def items(self, text: str) -> int:
        """The length of a list that the text stands for; 0 if it stands for none."""


class Whole:
    """A body of which nothing is left out."""

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
