"""Memory of conversations: token counts of earlier prompts, to estimate later ones.

A turn's prompt consists of the previous turn's prompt, the answer to it, and new
messages. The previous response reported the counts of prompt and answer. Counts are
stored under a hash of the messages so far. If a prompt continues a stored one, the
stored counts of that prompt and of its answer are used, and only the messages after
them are estimated.

No text is stored: one machine word contains a count and 40 bits of a hash that is keyed
with the interpreter's own secret. Processes with the same secret can share the words
without a lock: a word is read and written whole, and identifies its own prompt. Words
are in groups of eight, the most recently used first; a new word evicts the last word of
its group.
"""

from __future__ import annotations

from array import array
from dataclasses import dataclass

from extproc.routing.request import Prompt

ENTRIES = 65_536
"""Default number of 16-byte entries: 1 MB, or 11 minutes at 100 turns a second."""

_WAYS = 8
"""Number of words in a group: 64 bytes, one cache line."""
_WORD_BYTES = 8

_TOKEN_BITS = 24
_MOST_TOKENS = (1 << _TOKEN_BITS) - 1
_TAG_BITS = 40
_TAG = (1 << _TAG_BITS) - 1
_HASH = (1 << 64) - 1

_MIXED = 0x9E37_79B9_7F4A_7C15
"""An odd number with well-mixed bits (Knuth, TAOCP 6.4: 2^64 over the golden ratio): it
multiplies a key to find its group, and distinguishes an answer's key from its prompt's.
"""

_MAX_MESSAGES = 4096


@dataclass(frozen=True, slots=True)
class Conversation:
    """The conversation of one prompt."""

    key: int
    """Hash of all messages of the prompt, under which its count is stored."""
    known_tokens: int = 0
    """Counted tokens of the longest stored part, 0 if there is none."""
    known_bytes: int = 0
    """Number of bytes of text in the stored part."""
    known_messages: int = 0
    """Number of messages in the stored part."""
    answer_tokens: int = 0
    """Counted tokens of the answer to the stored part, 0 if the answer is not
    stored."""


def memory_bytes(entries: int) -> int:
    """Return the size of the memory in bytes for at least one entry."""
    words = 2 * entries  # the counts of the prompt and of its answer
    return -(-words // _WAYS) * _WAYS * _WORD_BYTES


class Conversations:
    """Counts of prompts, stored by a hash of their messages.

    Not thread-safe, but processes may share the memory.

    Args:
        entries: prompts to store, at least 1; rounded up to a multiple of 4.
        memory: storage of ``memory_bytes(entries)`` bytes, initially zero; if None, it
            is private to this process.
    """

    def __init__(
        self, entries: int = ENTRIES, memory: memoryview | None = None
    ) -> None:
        if memory is None:
            memory = memoryview(bytearray(memory_bytes(entries)))
        self._words = memory.cast("Q")
        self._places = len(self._words) // _WAYS

    def find(self, model: str, prompt: Prompt) -> Conversation | None:
        """Return the conversation that a prompt continues or starts.

        Args:
            model: name of the model that counts the tokens.
            prompt: if it is a sample, is not a chat, or contains media or text that the
                template may leave out, the result is None.
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
            start = end + 1  # messages are separated by a newline
        for position in range(len(ends) - 1, -1, -1):
            tokens = self._recall(keys[position])
            if tokens:
                answer_tokens = self._recall(keys[position] ^ _MIXED)
                return Conversation(
                    key, tokens, ends[position], position + 1, answer_tokens
                )
        return Conversation(key)

    def remember(self, key: int, tokens: int, answer_tokens: int = 0) -> None:
        """Store the count of a prompt, and the count of its answer if that is known.

        Counts above 16 million tokens are not stored.
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
        """Return the count of a prompt, or 0 if it is not stored."""
        start, tag = self._place(key)
        words = self._words[start : start + _WAYS].tolist()
        for way, word in enumerate(words):
            if word >> _TOKEN_BITS == tag:
                if way and word:
                    self._put_first(start, words[:way], word)
                return word & _MOST_TOKENS
        return 0

    def _place(self, key: int) -> tuple[int, int]:
        """Return the first word of a key's group, and the key's tag within it."""
        mixed = (key * _MIXED & _HASH) >> _TAG_BITS
        return mixed % self._places * _WAYS, key & _TAG

    def _put_first(self, start: int, before: list[int], word: int) -> None:
        """Write a word at the start of its group and move the words before it back."""
        self._words[start : start + len(before) + 1] = array("Q", [word, *before])
