"""Gathers the text and media of a request's prompt.

All text in the parts of the body that form the prompt is counted, in three groups:

- fields that vLLM renders (``content``, ``text``, ``tool_calls``): text;
- fields that a chat template may or may not render (reasoning, ``documents``, any field
  not listed here): text of an ``OptionalKind``, whose share of the prompt is learned
  for each model;
- fields that are never rendered, listed by name: identifiers, states, signatures.

Unusually long identifiers are counted as text.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import chain
from operator import itemgetter
from typing import Any, Final

import msgspec

from extproc.exchange.media_headers import (
    HEAD_CHARS,
    audio_seconds,
    decode_head,
    image_size,
    video_seconds,
)
from extproc.exchange.source import Source
from extproc.json_object import JsonObject
from extproc.routing.media import MediaVector
from extproc.routing.request import OptionalKind, OptionalText

MAX_IDENTIFIER_CHARS: Final = 64
"""Maximum length of an identifier. The tokens of an identifier up to this length count
as overhead of the message, like the template's own words; a longer identifier counts as
text."""

_NOT_PROMPT = frozenset(
    {
        "annotations",
        "cache_control",
        "caller",
        "citations",
        "created_at",
        "detail",
        "encrypted_content",
        "index",
        "logprobs",
        "max_pixels",
        "min_pixels",
        "signature",
        "status",
        "top_logprobs",
        "usage",
    }
)
"""Fields of messages and parts that no vLLM version and no known template renders."""

_IDENTIFIERS = frozenset(
    {
        "approval_request_id",
        "call_id",
        "file_id",
        "id",
        "phase",
        "role",
        "tool_call_id",
        "tool_use_id",
        "type",
        "uuid",
    }
)
_USUAL_ROLES = frozenset({"assistant", "developer", "system", "tool", "user"})
_TEXT = frozenset({"content", "name", "output", "refusal", "text"})
_REASONING = frozenset({"reasoning", "reasoning_content", "thinking"})
_CALL_TEXT = frozenset({"arguments", "input", "name"})
_CALL_TYPES = frozenset({"function", "function_call", "server_tool_use", "tool_use"})
_REDACTED = frozenset({"redacted_thinking"})
_OPAQUE_TYPES = frozenset({"compaction", "item_reference", "prompt_embeds"})
"""Types of parts that refer to text outside the body."""

_MESSAGE_DONE = _NOT_PROMPT | {"content"}

_IMAGE_KEYS = frozenset(
    {
        "image",
        "image_embeds",
        "image_generation_call",
        "image_pil",
        "image_url",
        "input_image",
    }
)
_AUDIO_KEYS = frozenset({"audio", "audio_embeds", "audio_url", "input_audio"})
_VIDEO_KEYS = frozenset({"input_video", "video", "video_embeds", "video_url"})
_FILE_KEYS = frozenset({"container_upload", "document", "file", "input_file"})
_MEDIA_KEYS = _IMAGE_KEYS | _AUDIO_KEYS | _VIDEO_KEYS | _FILE_KEYS
_MEDIA_FIELDS = _MEDIA_KEYS | {"source", "file_data", "file_url", "filename", "result"}

_THINK_END = "</think>"
_THINK_START = "<think>"

_TAKEN_FROM_SOURCE = ("data", "content")
"""Keys of a source that contain a document's text or another payload."""

_PAYLOAD = re.compile(r"data:|https?:|[A-Za-z0-9+/_=-]{64}")
"""Start of a data URL, an address or base64."""

compact = msgspec.json.encode
_content_of, _role_of = itemgetter("content"), itemgetter("role")


class PromptParts:
    """Text and media, gathered from the parts of a body.

    Args:
        source: the JSON from which the parts were parsed.
    """

    __slots__ = (
        "_media",
        "_optional",
        "_reasoning",
        "_source",
        "_turn",
        "audios",
        "files",
        "images",
        "leading",
        "message_texts",
        "opaque",
        "texts",
    )

    def __init__(self, source: Source) -> None:
        self.texts: list[str] = []
        self.images = 0
        self.audios = 0
        self.files = 0
        self._media: MediaVector | None = None
        self.opaque = False
        self.message_texts: list[Sequence[str]] = []
        """The texts of each message."""
        self.leading = 0
        """The number of texts before the first message."""
        self._source = source
        self._optional: dict[OptionalKind, list[str]] = {}
        self._reasoning: list[tuple[int, str]] = []
        """Reasoning texts, each with the number of user messages before it."""
        self._turn = 0

    def add(self, value: Any) -> None:
        """Add content: a string, a list of strings and parts, or a part."""
        if type(value) is str:
            self.texts.append(value)
        elif type(value) is list:
            for part in value:
                if type(part) is str:
                    self.texts.append(part)
                elif type(part) is dict:
                    self.add_part(part)
                elif part is not None:
                    self.add_other(part)
        elif type(value) is dict:
            self.add_part(value)
        elif value is not None:
            self.add_other(value)

    def add_messages(self, messages: Sequence[JsonObject]) -> None:
        """Add chat messages, in order."""
        self.leading = len(self.texts)
        if self._add_plain(messages):
            return
        for message in messages:
            before = len(self.texts)
            self.add_message(message)
            self.message_texts.append(self.texts[before:])

    def _add_plain(self, messages: Sequence[JsonObject]) -> bool:
        """Add messages if each has only a role and a text; otherwise return false."""
        try:
            contents = [*map(_content_of, messages)]
            text = "\n".join(contents)
            roles = [*map(_role_of, messages)]
            usual = _USUAL_ROLES.issuperset(roles)
        except (KeyError, TypeError):  # missing, or of another type
            return False
        if not usual or sum(map(len, messages)) > 2 * len(messages):
            return False
        # A search from the end takes a tenth of the time of a search from the start.
        if "assistant" in roles and text.rfind(_THINK_END) >= 0:
            return False
        self.texts.append(text)
        self.message_texts = [*zip(contents)]
        self._turn += roles.count("user")
        return True

    def add_message(self, message: JsonObject) -> None:
        """Add a chat message."""
        role, content = message.get("role"), message.get("content")
        if role == "user" and not _only_tool_results(content):
            self._turn += 1
        if type(content) is str:
            self._add_content(content, role)
            if len(message) == 2 and role in _USUAL_ROLES:
                return
        else:
            self.add(content)
        for key, value in message.items():
            if value is None or key in _MESSAGE_DONE:
                continue
            if key in _IDENTIFIERS:
                self._add_identifier(value)
            elif key == "tool_calls" and type(value) is list:
                self._add_calls(value)
            elif key in _REASONING:
                self._add_reasoning(value, message, key)
            elif key in _TEXT:
                self.add(value)
            else:
                self._add_unknown(key, value)

    def _add_content(self, text: str, role: Any) -> None:
        if role == "assistant":
            end = text.rfind(_THINK_END)
            if end >= 0:
                # Templates of reasoning models remove this part from earlier answers.
                reasoning = text[:end].replace(_THINK_START, "")
                self._reasoning.append((self._turn, reasoning))
                text = text[end + len(_THINK_END) :]
        self.texts.append(text)

    def _add_calls(self, calls: Sequence[Any]) -> None:
        for call in calls:
            if type(call) is dict:
                self._add_call(call)
            else:
                self.add_other(call)

    def _add_call(self, call: JsonObject) -> None:
        """Add a tool call: its name, and its arguments as text or as an object."""
        for key, value in call.items():
            if key == "function" and type(value) is dict:
                self._add_call(value)
            elif value is None or key in _NOT_PROMPT:
                continue
            elif key in _CALL_TEXT:
                self.texts.append(value if type(value) is str else _text(value))
            elif key in _IDENTIFIERS:
                self._add_identifier(value)
            else:
                self._add_unknown(key, value)

    def _add_reasoning(self, value: Any, message: JsonObject, key: str) -> None:
        if key == "reasoning_content" and value == message.get("reasoning"):
            return  # the same text under an older name
        self.add_reasoning(value)

    def add_reasoning(self, value: Any) -> None:
        """Add reasoning of the current turn: text, or parts with text."""
        if type(value) is list:
            for each in value:
                self.add_reasoning(each)
        elif type(value) is dict:
            for key, each in value.items():
                if key in _REASONING or key in _TEXT:
                    self.add_reasoning(each)
                elif key in _IDENTIFIERS:
                    self._add_identifier(each)
                elif key not in _NOT_PROMPT:
                    self._add_unknown(key, each)
        else:
            self._reasoning += ((self._turn, text) for text in _strings(value))

    def add_part(self, part: JsonObject) -> None:
        """Add a content part, or an item of the Responses API."""
        kind = part.get("type")
        kind = kind if type(kind) is str else ""  # a list is unhashable
        if kind in _CALL_TYPES:
            self._add_call(part)
            return
        if kind in _REDACTED:
            return
        if kind in _OPAQUE_TYPES:
            self.opaque = True
            self.add_file()
            return
        self._add_fields(part, media=self._take_media(kind, part))

    def _add_fields(self, part: JsonObject, *, media: bool) -> None:
        for key, value in part.items():
            if value is None or key in _NOT_PROMPT:
                continue
            if media and key in _MEDIA_FIELDS:
                taken = key == "source" and _is_text_source(part)
                self._add_media_field(value, _TAKEN_FROM_SOURCE if taken else ())
            elif key in _TEXT:
                self.add(value)
            elif key in _IDENTIFIERS:
                self._add_identifier(value)
            elif key in _REASONING:
                self.add_reasoning(value)
            elif not media or not self._is_payload(value):
                self._add_unknown(key, value)

    def add_item(self, item: Any) -> None:
        """Add an item of the Responses API's ``input``."""
        if type(item) is not dict:
            self.add([item])
        elif item.get("type") == "reasoning":
            # vLLM uses the summary if there is no content.
            self._add_reasoning_item(item)
        elif "role" in item:
            self.add_message(item)
        else:
            self.add_part(item)

    def _add_reasoning_item(self, item: JsonObject) -> None:
        for key, value in item.items():
            if value is None or key in _NOT_PROMPT:
                continue
            if key == "content" or (key == "summary" and not item.get("content")):
                self.add_reasoning(value)
            elif key in _IDENTIFIERS:
                self._add_identifier(value)
            elif key != "summary":
                self._add_unknown(key, value)

    def _take_media(self, kind: str, part: JsonObject) -> bool:
        """Count a part that is an image, audio, video or a file; else return false."""
        keys = [kind, *(key for key in part if key in _MEDIA_KEYS)]
        if kind == "document" and _is_text_source(part):
            for key in _TAKEN_FROM_SOURCE:
                self.add(part["source"].get(key))
        elif any(key in _IMAGE_KEYS for key in keys):
            self._add_image(self._payload_of(part), low_detail=_is_low(part))
        elif any(key in _AUDIO_KEYS for key in keys):
            self._add_audio(self._payload_of(part))
        elif any(key in _VIDEO_KEYS for key in keys):
            self._add_video(self._payload_of(part))
        elif any(key in _FILE_KEYS for key in keys):
            self.add_file()
        else:
            return False
        return True

    def add_file(self) -> None:
        """Count a file."""
        self.files += 1
        self._vector().add_file()

    def _add_image(self, payload: str, *, low_detail: bool) -> None:
        self.images += 1
        size = image_size(self._head(payload))
        self._vector().add_image(size, low_detail=low_detail)

    def _add_audio(self, payload: str) -> None:
        self.audios += 1
        size_bytes = self._source.size_bytes(payload) * 3 // 4
        self._vector().add_audio(audio_seconds(self._head(payload), size_bytes))

    def _add_video(self, payload: str) -> None:
        self.audios += 1
        self._vector().add_video(video_seconds(self._head(payload)))

    def _vector(self) -> MediaVector:
        if self._media is None:
            self._media = MediaVector()
        return self._media

    def _head(self, payload: str) -> bytes:
        return decode_head(self._source.head(payload, HEAD_CHARS)) if payload else b""

    def _payload_of(self, value: Any) -> str:
        """The data URL or base64 in a media part; empty if the part has neither."""
        if type(value) is str:
            return value if self._is_payload(value) else ""
        if type(value) is dict:
            found = (self._payload_of(each) for each in value.values())
            return next(filter(None, found), "")
        return ""

    @property
    def media(self) -> tuple[float, ...]:
        """The media counts in the order of ``MEDIA_TERMS``; empty without media."""
        return () if self._media is None else tuple(self._media.terms)

    def _add_identifier(self, value: Any) -> None:
        short = type(value) is str and len(value) <= MAX_IDENTIFIER_CHARS
        # A reference is short although it stands for long, elided text.
        if not short or self._source.refers(value):
            self.add_other(value)

    def _add_media_field(self, value: Any, taken: Sequence[str] = ()) -> None:
        """Add the content of a media part's field, except for the media itself."""
        if type(value) is dict:
            for key, each in value.items():
                if key not in _NOT_PROMPT and key not in taken:
                    self._add_identifier(key)
                    self._add_media_field(each)
        elif not self._is_payload(value):
            self._add_identifier(value)

    def _is_payload(self, value: Any) -> bool:
        """Whether a field of a media part is the media itself, or its address."""
        head = self._source.head(value, 64) if type(value) is str else ""
        return _PAYLOAD.match(head) is not None

    def add_optional(self, kind: OptionalKind, value: Any) -> None:
        """Add text and media of a kind that templates may omit."""
        for text in _strings(value):
            head = self._source.head(text, 16)
            if head.startswith("data:image/"):
                self._add_image(text, low_detail=False)
            elif head.startswith("data:audio/"):
                self._add_audio(text)
            elif head.startswith("data:video/"):
                self._add_video(text)
            elif head.startswith("data:application/"):
                self.add_file()
            else:
                self._optional.setdefault(kind, []).append(text)

    def add_other(self, value: Any) -> None:
        """Add a value that an unknown template may render."""
        self.add_optional(OptionalKind.OTHER, value)

    def _add_unknown(self, key: str, value: Any) -> None:
        """Add a field with an unknown name; count the name too if it is long."""
        self.add_other(value)
        self._add_identifier(key)

    @property
    def size_bytes(self) -> int:
        """The number of bytes of all text, including text that templates may omit."""
        texts = [self.texts, *self._optional.values()]
        texts.append([text for _, text in self._reasoning])
        return sum(map(self._source.size_bytes, chain.from_iterable(texts)))

    @property
    def optional(self) -> tuple[OptionalText, ...]:
        """The text that templates may omit, by kind."""
        if not self._reasoning and not self._optional:
            return ()
        gathered = dict(self._optional)
        for turn, text in self._reasoning:
            gathered.setdefault(self._reasoning_kind(turn), []).append(text)
        return tuple(
            OptionalText(kind, *self._source.excerpt("\n".join(texts)))
            for kind, texts in sorted(gathered.items())
        )

    def _reasoning_kind(self, turn: int) -> OptionalKind:
        if turn >= self._turn:
            return OptionalKind.CURRENT_REASONING
        if turn == self._turn - 1:
            return OptionalKind.LAST_REASONING
        return OptionalKind.EARLIER_REASONING


def _is_text_source(part: JsonObject) -> bool:
    """Whether a part is a document in Anthropic's format with a text source."""
    source = part.get("source")
    return (
        part.get("type") == "document"
        and type(source) is dict
        and source.get("type") in ("text", "content")
    )


def _is_low(part: JsonObject) -> bool:
    """Whether the client requests low detail for an image."""
    image = part.get("image_url")
    inner = image.get("detail") if type(image) is dict else None
    return "low" in (part.get("detail"), inner)


def _only_tool_results(content: Any) -> bool:
    """Whether a user message contains only tool results, in Anthropic's format."""
    return (
        type(content) is list
        and bool(content)
        and all(
            type(part) is dict and part.get("type") == "tool_result" for part in content
        )
    )


def _text(value: Any) -> str:
    return compact(value).decode() if value or value == 0 else ""


def _strings(value: Any) -> list[str]:
    """All strings in a value, including keys of objects, and numbers as text."""
    if type(value) is str:
        return [value] if value else []
    if type(value) is list:
        return [text for each in value for text in _strings(each)]
    if type(value) is dict:
        found = []
        for key, each in value.items():
            inner = _strings(each)
            if inner or len(key) > MAX_IDENTIFIER_CHARS:
                found += [key, *inner]
        return found
    if type(value) in (int, float):
        return [str(value)]
    return []
