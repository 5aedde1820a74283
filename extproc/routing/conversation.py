"""Memory of conversations: the count of a prompt is a part of the next turn's.

The prompt of a turn is that of the turn before, whose tokens its response counted, plus
the answer, plus what is new. The counts are kept by a hash of the messages so far; a
prompt that continues one that is remembered takes the count, and only the messages
after it are estimated. On later turns that leaves a quarter of the error.

No text is kept: a hash of 64 bits, keyed by the interpreter's own secret, and a count.
The memory is bounded; the conversation that was not continued for longest is forgotten.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

from extproc.routing.request import Prompt

ENTRIES = 65_536
"""Of 200 bytes, 13 MB: at 100 turns a second, those of the last 11 minutes."""

_MAX_MESSAGES = 4096


@dataclass(frozen=True, slots=True)
class Conversation:
    """The conversation of one prompt."""

    key: int
    """Of all its messages: what its count is remembered by."""
    known_tokens: int = 0
    """Counted tokens of the longest remembered part, 0 if none is."""
    known_bytes: int = 0
    """The bytes of text that those are of."""
    known_messages: int = 0
    """The messages that those are of."""


class Conversations:
    """Counts of prompts, by the messages that they consist of.

    Not thread-safe.

    Args:
        entries: prompts remembered, at least 1.
    """

    def __init__(self, entries: int = ENTRIES) -> None:
        self._entries = entries
        self._counts: OrderedDict[int, int] = OrderedDict()

    def __len__(self) -> int:
        return len(self._counts)

    def find(self, model: str, prompt: Prompt) -> Conversation | None:
        """Return the conversation that a prompt continues or begins.

        Args:
            model: what the tokens are counted as.
            prompt: its conversation is None if it is a sample, holds media or text
                that the template may leave out, or is no chat.
        """
        ends = prompt.message_ends
        if (
            not 0 < len(ends) <= _MAX_MESSAGES
            or prompt.missing_bytes
            or prompt.missing_tools_bytes
            or prompt.has_media
            or prompt.optional
            or prompt.opaque
        ):
            return None
        key = hash((model, prompt.tools_text))
        keys = []
        start = 0
        for end in ends:
            key = hash((key, prompt.text[start:end]))
            keys.append(key)
            start = end + 1  # a newline is between
        for position in range(len(ends) - 1, -1, -1):
            tokens = self._counts.get(keys[position])
            if tokens is not None:
                self._counts.move_to_end(keys[position])
                return Conversation(key, tokens, ends[position], position + 1)
        return Conversation(key)

    def remember(self, key: int, tokens: int) -> None:
        """Keep the count of a prompt."""
        self._counts[key] = tokens
        self._counts.move_to_end(key)
        if len(self._counts) > self._entries:
            self._counts.popitem(last=False)
