"""The parts of an inference request that determine its token budget."""

from __future__ import annotations

from enum import IntEnum
from typing import Final

import msgspec


class OptionalKind(IntEnum):
    """Kinds of text; a chat template renders all text of a kind or leaves it out.

    The numbers are part of the format of decision tokens.
    """

    EARLIER_REASONING = 0
    """Reasoning in answers that precede the last answer to which the user has
    replied."""
    LAST_REASONING = 1
    """Reasoning in the last answer to which the user has replied."""
    CURRENT_REASONING = 2
    """Reasoning since the user's last message, between tool calls."""
    DOCUMENTS = 3
    """The ``documents`` of retrieval, which some templates render."""
    OTHER = 4
    """Other fields, which a template may or may not render."""


class OptionalText(msgspec.Struct, frozen=True, gc=False):
    """Text of one kind that a template may leave out."""

    kind: OptionalKind
    text: bytes
    """UTF-8. Like ``Prompt.text``, it may be a sample if the body is large."""
    missing_bytes: int = 0


MAX_MODEL_CHARS: Final = 1024
"""Maximum number of characters of a model name; the rest is cut off. Learned state is
keyed by the name, which a client can make arbitrarily long."""


class Prompt(msgspec.Struct, frozen=True, gc=False):
    """The model's input, after JSON decoding.

    A request has the same ``Prompt`` whether its JSON is in UTF-8, has ``\\uXXXX``
    escapes or has spaces between tokens. The number of wire bytes varies by a factor of
    2.7 between clients.
    """

    text: bytes
    """UTF-8 of all message text, tool calls and results, joined by newlines. It may be
    a sample if the body is large."""
    messages: int = 1
    """Number of chat messages; the template adds some tokens for each."""
    tools_text: bytes = b""
    """The tool definitions as compact JSON."""
    tools: int = 0
    """Number of tool definitions."""
    images: int = 0
    audios: int = 0
    """Number of audio and video parts."""
    files: int = 0
    token_ids: int = 0
    """Number of prompt tokens that the client sent as token ids."""
    missing_bytes: int = 0
    """Number of bytes missing from ``text`` if it is a sample (see
    ``sample_windows``)."""
    missing_tools_bytes: int = 0
    """Bytes missing from ``tools_text``."""
    message_ends: tuple[int, ...] = ()
    """The end of each message in ``text``, in bytes; empty if unknown."""
    optional: tuple[OptionalText, ...] = ()
    """Text that the template may leave out; each kind occurs at most once."""
    media: tuple[float, ...] = ()
    """Sums of ``media.MEDIA_TERMS`` over the parts; empty if there are no parts, or if
    only their number is known."""
    opaque: bool = False
    """Whether a part of the prompt cannot be estimated, because the request contains a
    chat template or embeddings. Nothing is learned from such a prompt."""

    @property
    def is_counted(self) -> bool:
        """Whether the prompt consists of token ids alone, so its count is exact."""
        return bool(self.token_ids) and not self.text

    @property
    def has_media(self) -> bool:
        """Whether there are parts other than text."""
        return bool(self.images or self.audios or self.files)


class Request(msgspec.Struct, frozen=True, gc=False):
    """One inference request."""

    prompt: Prompt
    body_bytes: int
    """Size in bytes of the received body, after content-decoding."""
    model: str = ""
    """Served model name as sent by the client, up to ``MAX_MODEL_CHARS``; never used as
    a label, since it is the client's text."""
    max_tokens: int | None = None
    """The client's own limit on output tokens, or None."""
    sequences: int = 1
    """Number of completions computed in parallel from one prompt (``n``,
    ``best_of``)."""
    prompts: int = 1
    """Number of prompts in the request; ``prompt`` is the longest of them."""
    stored: bool | None = None
    """Whether the client requests that the server keep the response (Responses API:
    ``store``, ``background``); None if the request has no such field."""
    generates: bool = True
    """Whether the request generates output tokens; false for embeddings."""
    stream: bool = False
    asks_usage: bool = False
    """Whether the client of a stream set ``include_usage``."""
    operation: str = "chat"
    """``gen_ai.operation.name`` of OpenTelemetry's semantic conventions."""
    min_tokens: int = 0
    """Minimum number of output tokens that the client requires."""
    ignore_eos: bool = False
    """Whether the output continues to its limit or, without a limit, to the end of the
    window."""
    prompt_limit: int | None = None
    """Number of tokens to which the backend truncates the prompt; a server with a
    smaller window refuses the request."""
    cut_to_window: bool = False
    """Whether the backend truncates the prompt to its window."""
