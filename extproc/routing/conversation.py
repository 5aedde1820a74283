"""Memory of conversations: the count of a prompt is a part of the next turn's.

The prompt of a turn is that of the turn before, whose tokens its response counted, plus
the answer, plus what is new. The counts are kept by a hash of the messages so far; a
prompt that continues one that is remembered takes the counts of both, and only the
messages after them are estimated.

No text is kept: 40 bits of a hash, keyed by the interpreter's own secret, and a count,
in one machine word. Processes that have the same secret may share the words, without a
lock: a word is read and written whole, and says itself what it is the count of. Words
lie in places of eight, the last used first; a new one replaces the last of its place.
"""

from __future__ import annotations

from array import array
from dataclasses import dataclass

from extproc.routing.request import Prompt

ENTRIES = 65_536
"""Of 16 bytes, 1 MB: at 100 turns a second, those of the last 11 minutes."""

_WAYS = 8
"""Words of a place: 64 bytes, what a processor reads at once."""
_WORD_BYTES = 8

_TOKEN_BITS = 24
_MOST_TOKENS = (1 << _TOKEN_BITS) - 1
_TAG_BITS = 40
_TAG = (1 << _TAG_BITS) - 1
_HASH = (1 << 64) - 1

_MIXED = 0x9E37_79B9_7F4A_7C15
"""An odd number of mixed bits (Knuth, TAOCP 6.4: 2^64 over the golden ratio): what a
key is multiplied by to find its place, and what tells an answer's key from it."""

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
    answer_tokens: int = 0
    """Counted tokens of the answer to them, 0 if it is not remembered."""


def memory_bytes(entries: int) -> int:
    """Return the size of the memory for so many entries, at least 1."""
    words = 2 * entries  # the prompt's count, and its answer's
    return -(-words // _WAYS) * _WAYS * _WORD_BYTES


class Conversations:
    """Counts of prompts, by the messages that they consist of.

    Not thread-safe, but processes may share the memory.

    Args:
        entries: prompts remembered, at least 1; rounded up to a multiple of 4.
        memory: holds them: ``memory_bytes(entries)`` bytes, zeros at first; None: of
            this process alone.
    """

    def __init__(
        self, entries: int = ENTRIES, memory: memoryview | None = None
    ) -> None:
        if memory is None:
            memory = memoryview(bytearray(memory_bytes(entries)))
        self._words = memory.cast("Q")
        self._places = len(self._words) // _WAYS

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
            tokens = self._recall(keys[position])
            if tokens:
                answer_tokens = self._recall(keys[position] ^ _MIXED)
                return Conversation(
                    key, tokens, ends[position], position + 1, answer_tokens
                )
        return Conversation(key)

    def remember(self, key: int, tokens: int, answer_tokens: int = 0) -> None:
        """Keep the count of a prompt, and that of its answer if it is known.

        Counts beyond 16 million tokens are not kept.
        """
        self._keep(key, tokens)
        self._keep(key ^ _MIXED, answer_tokens)

    def _keep(self, key: int, tokens: int) -> None:
        if not 0 < tokens <= _MOST_TOKENS:
            return
        start, tag = self._place(key)
        words = self._words[start : start + _WAYS].tolist()
        tags = [word >> _TOKEN_BITS for word in words]
        way = tags.index(tag) if tag in tags else _WAYS - 1
        self._put_first(start, words[:way], tag << _TOKEN_BITS | tokens)

    def _recall(self, key: int) -> int:
        """Return the count of a prompt, 0 if it is not remembered."""
        start, tag = self._place(key)
        words = self._words[start : start + _WAYS].tolist()
        for way, word in enumerate(words):
            if word >> _TOKEN_BITS == tag:
                if way and word:
                    self._put_first(start, words[:way], word)
                return word & _MOST_TOKENS
        return 0

    def _place(self, key: int) -> tuple[int, int]:
        """Return the first word of a key's place, and what tells it apart there."""
        mixed = (key * _MIXED & _HASH) >> _TAG_BITS
        return mixed % self._places * _WAYS, key & _TAG

    def _put_first(self, start: int, before: list[int], word: int) -> None:
        """Write a word at the beginning of its place; move those before it back."""
        self._words[start : start + len(before) + 1] = array("Q", [word, *before])
