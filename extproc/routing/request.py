"""What a request asks of a backend, as far as its token budget goes."""

from __future__ import annotations

from enum import IntEnum
from typing import Final

import msgspec


class OptionalKind(IntEnum):
    """Text that a chat template may leave out, by what is kept or dropped together.

    The numbers are written in decision tokens.
    """

    EARLIER_REASONING = 0
    """Reasoning of the answers before the last one that the user has replied to."""
    LAST_REASONING = 1
    """Reasoning of the last answer that the user has replied to."""
    CURRENT_REASONING = 2
    """Reasoning since the user's last message, between calls of tools."""
    DOCUMENTS = 3
    """The ``documents`` of retrieval, which some templates render."""
    OTHER = 4
    """Fields of which it is not known whether any template renders them."""


class OptionalText(msgspec.Struct, frozen=True, gc=False):
    """Text of one kind that a template may leave out."""

    kind: OptionalKind
    text: bytes
    """UTF-8; of a large body it may be a sample, as ``Prompt.text``."""
    missing_bytes: int = 0


MAX_MODEL_CHARS: Final = 1024
"""Of a model's name; what exceeds it is cut off. What is learned of a model is kept
under its name, which is a client's text of any length."""


class Prompt(msgspec.Struct, frozen=True, gc=False):
    """What the model will read, after JSON decoding.

    The same request in UTF-8, with ``\\uXXXX`` escapes or with spaces between tokens
    gives the same ``Prompt``: wire bytes vary by a factor of 2.7 between clients.
    """

    text: bytes
    """UTF-8 of all message text, tool calls and results, joined by newlines; of a large
    body it may be a sample."""
    messages: int = 1
    """Chat messages; each costs the template some tokens."""
    tools_text: bytes = b""
    """The tool definitions as compact JSON."""
    tools: int = 0
    """Tool definitions."""
    images: int = 0
    audios: int = 0
    """Audio and video parts."""
    files: int = 0
    token_ids: int = 0
    """Prompt tokens that the client counted itself by sending token ids."""
    missing_bytes: int = 0
    """What ``text`` lacks, where it is a sample in ``sample_windows``."""
    missing_tools_bytes: int = 0
    """The same of ``tools_text``."""
    message_ends: tuple[int, ...] = ()
    """The end of each message in ``text``, in bytes; empty if it is not known."""
    optional: tuple[OptionalText, ...] = ()
    """Text that the template may leave out, each kind at most once."""
    media: tuple[float, ...] = ()
    """Sums of ``media.MEDIA_TERMS`` over the parts; empty if only their numbers are
    known, or there are none."""
    opaque: bool = False
    """Whether something replaces or adds tokens that cannot be estimated: a chat
    template of the request's own, embeddings. Such a prompt teaches nothing."""

    @property
    def is_counted(self) -> bool:
        """Whether the client counted it: token ids alone."""
        return bool(self.token_ids) and not self.text

    @property
    def has_media(self) -> bool:
        """Whether parts other than text are there."""
        return bool(self.images or self.audios or self.files)


class Request(msgspec.Struct, frozen=True, gc=False):
    """One inference request."""

    prompt: Prompt
    body_bytes: int
    """Bytes of the body as received, after content-decoding."""
    model: str = ""
    """Served model name as the client wrote it, up to ``MAX_MODEL_CHARS``; client
    text, so never a label."""
    max_tokens: int | None = None
    """The client's own limit on output tokens, or None."""
    sequences: int = 1
    """Completions computed side by side from one prompt (``n``, ``best_of``)."""
    prompts: int = 1
    """Prompts in the request; ``prompt`` is the longest of them."""
    stored: bool | None = None
    """Whether the server is asked to keep the response (Responses API: ``store``,
    ``background``); None: the request does not say, or its API keeps none."""
    generates: bool = True
    """False for embeddings: no output tokens."""
    stream: bool = False
    asks_usage: bool = False
    """Whether a stream's client asked for ``include_usage``."""
    operation: str = "chat"
    """``gen_ai.operation.name`` of OpenTelemetry's semantic conventions."""
    min_tokens: int = 0
    """Output tokens that the client insists on."""
    ignore_eos: bool = False
    """Whether the output goes on to its limit, or without one to the window's end."""
    prompt_limit: int | None = None
    """Tokens that the backend cuts the prompt to. A window below it is refused."""
    cut_to_window: bool = False
    """Whether the backend cuts the prompt to its window."""
