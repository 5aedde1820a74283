"""Requests of the OpenAI and Anthropic APIs, as vLLM serves them.

``ENDPOINTS`` is the table of the APIs. ``parse_source`` never raises on what a client
sent: a body that is no request gives None, and the default pool's backend judges it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import msgspec
from msgspec.structs import replace

from extproc.routing.request import MAX_MODEL_CHARS, Prompt, Request

MAX_OUTPUT_TOKENS = 1 << 31
"""Declared limits above this are cut to it: no model's window comes near."""


class Source(Protocol):
    """What is parsed of a body: the whole, or its elided JSON."""

    @property
    def octets(self) -> bytes | memoryview:
        """JSON."""

    @property
    def body_bytes(self) -> int:
        """The body's size."""

    def excerpt(self, text: str) -> tuple[bytes, int]:
        """A text from the JSON in UTF-8, and how many of its bytes are missing."""

    def size_bytes(self, text: str) -> int:
        """A text's size in UTF-8."""

    def items(self, text: str) -> int:
        """The length of a list that the text stands for; 0 if it stands for none."""


class Whole:
    """A body of which nothing is left out."""

    __slots__ = ("octets",)

    def __init__(self, octets: bytes | memoryview) -> None:
        self.octets: bytes | memoryview = octets

    @property
    def body_bytes(self) -> int:
        return len(self.octets)

    def excerpt(self, text: str) -> tuple[bytes, int]:
        return text.encode(), 0

    def size_bytes(self, text: str) -> int:
        return len(text.encode())

    def items(self, text: str) -> int:
        return 0


class _Message(msgspec.Struct):
    content: Any = None
    tool_calls: Any = None
    reasoning_content: Any = None
    reasoning: Any = None
    refusal: Any = None
    name: Any = None


class _Body(msgspec.Struct):
    """The fields that we need; everything else is skipped without being built."""

    model: Any = None
    stream: Any = None
    stream_options: Any = None
    max_completion_tokens: Any = None
    max_tokens: Any = None
    max_output_tokens: Any = None
    n: Any = None
    best_of: Any = None
    tools: Any = None


class _Chat(_Body):
    messages: list[_Message] = []
    system: Any = None


class _Completion(_Body):
    prompt: Any = None
    suffix: Any = None


class _Response(_Body):
    input: Any = None
    instructions: Any = None
    store: Any = None
    background: Any = None
    previous_response_id: Any = None
    conversation: Any = None


class _Gathered:
    """Text and media, gathered while walking through a body's parts."""

    __slots__ = ("audios", "files", "images", "texts")

    def __init__(self) -> None:
        self.texts: list[str] = []
        self.images = 0
        self.audios = 0
        self.files = 0

    def add(self, value: Any) -> None:
        """Take a string, or a list of strings and content parts, or nothing."""
        if type(value) is str:
            self.texts.append(value)
        elif type(value) is list:
            for part in value:
                if type(part) is str:
                    self.texts.append(part)
                elif type(part) is dict:
                    self._add_part(part)

    def _add_part(self, part: dict[str, Any]) -> None:
        kind = part.get("type")
        if type(kind) is not str:
            kind = ""  # a list would not even hash
        if kind in _TEXT_PARTS:
            self.add(part.get("text"))
        elif kind in _IMAGE_PARTS:
            self.images += 1
        elif kind in _AUDIO_PARTS:
            self.audios += 1
        elif kind in _FILE_PARTS:
            self._add_document(part)
        elif kind in _CALL_PARTS:
            self.add_call(part)
        else:
            # Tool results (``content``, ``output``), thinking blocks, refusals; what
            # has none of these has no text.
            for key in ("text", "thinking", "refusal", "content", "output"):
                if key in part:
                    self.add(part[key])

    def _add_document(self, part: dict[str, Any]) -> None:
        source = part.get("source")
        if type(source) is dict and source.get("type") in ("text", "content"):
            self.add(source.get("data"))
            self.add(source.get("content"))
        else:
            self.files += 1

    def add_call(self, call: dict[str, Any]) -> None:
        """Take a tool call: its name, and its arguments as text or as an object."""
        function = call.get("function")
        call = function if type(function) is dict else call
        self.add(call.get("name"))
        arguments = call.get("arguments", call.get("input"))
        if type(arguments) is str:
            self.texts.append(arguments)
        elif arguments:
            self.texts.append(_compact(arguments).decode())

    def add_message(self, message: _Message) -> None:
        """Take a chat message."""
        self.add(message.content)
        if type(message.tool_calls) is list:
            for call in message.tool_calls:
                if type(call) is dict:
                    self.add_call(call)
        reasoning = message.reasoning_content or message.reasoning
        if reasoning is not None:
            self.add(reasoning)
        if message.refusal is not None:
            self.add(message.refusal)
        if message.name is not None:
            self.add(message.name)


_TEXT_PARTS = frozenset({"text", "input_text", "output_text"})
_IMAGE_PARTS = frozenset({"image_url", "image", "input_image", "image_embeds"})
_AUDIO_PARTS = frozenset({"input_audio", "audio_url", "audio", "video_url", "video"})
_FILE_PARTS = frozenset({"file", "input_file", "document"})
_CALL_PARTS = frozenset({"tool_use", "function_call", "server_tool_use"})

_compact = msgspec.json.encode
_decode_chat = msgspec.json.Decoder(_Chat).decode
_decode_completion = msgspec.json.Decoder(_Completion).decode
_decode_response = msgspec.json.Decoder(_Response).decode


def _parse_chat(body: Source) -> Request | None:
    chat = _decode_chat(body.octets)
    gathered = _Gathered()
    if chat.system is not None:
        gathered.add(chat.system)
    for message in chat.messages:
        gathered.add_message(message)
    if not chat.messages:
        return None
    messages = len(chat.messages) + (chat.system is not None)
    limit = _first_limit(chat.max_completion_tokens, chat.max_tokens)
    return _request(chat, body, gathered, messages, limit)


def _parse_completion(body: Source) -> Request | None:
    completion = _decode_completion(body.octets)
    limit = _first_limit(completion.max_tokens, completion.max_completion_tokens)
    return _request_of_prompts(completion, completion.prompt, body, limit)


def _parse_embedding(body: Source) -> Request | None:
    embedding = _decode_response(body.octets)
    request = _request_of_prompts(embedding, embedding.input, body, None)
    if request is None:
        # vLLM also embeds a conversation: ``messages`` in place of ``input``.
        request = _parse_chat(body)
    return None if request is None else replace(request, generates=False)


def _parse_response(body: Source) -> Request | None:
    response = _decode_response(body.octets)
    gathered = _Gathered()
    gathered.add(response.instructions)
    messages = 1 + (response.instructions is not None)
    if type(response.input) is str:
        gathered.texts.append(response.input)
    elif type(response.input) is list:
        gathered.add(response.input)
        messages += max(0, len(response.input) - 1)
    else:
        return None
    limit = _first_limit(response.max_output_tokens)
    request = _request(response, body, gathered, messages, limit)
    return replace(request, stored=_is_stored(response))


def _is_stored(response: _Response) -> bool | None:
    """Whether a server keeps the response, or what it goes on from."""
    if response.background is True:
        return True
    history = response.previous_response_id, response.conversation
    if any(each is not None for each in history):
        return True
    return response.store if type(response.store) is bool else None


def _request(
    body: _Body, raw: Source, gathered: _Gathered, messages: int, limit: int | None
) -> Request:
    tools = body.tools if type(body.tools) is list else []
    text, missing_bytes = raw.excerpt("\n".join(gathered.texts))
    tools_text, missing_tools_bytes = b"", 0
    if tools:
        tools_text, missing_tools_bytes = raw.excerpt(_compact(tools).decode())
    prompt = Prompt(
        text=text,
        messages=messages,
        tools_text=tools_text,
        tools=len(tools),
        images=gathered.images,
        audios=gathered.audios,
        files=gathered.files,
        missing_bytes=missing_bytes,
        missing_tools_bytes=missing_tools_bytes,
    )
    return _finished(body, raw, prompt, limit, prompts=1)


def _request_of_prompts(
    body: _Body, value: Any, raw: Source, limit: int | None
) -> Request | None:
    if type(value) is list and value and type(value[0]) is not int:
        # Each prompt is a sequence of its own: the longest decides whether a pool fits.
        longest = max(value, key=lambda each: _rough_tokens(each, raw))
        prompts = len(value)
        longest = _text_of(longest) if type(longest) is dict else longest
    else:
        longest, prompts = value, 1
    prompt = _prompt(longest, raw)
    return None if prompt is None else _finished(body, raw, prompt, limit, prompts)


def _rough_tokens(value: Any, raw: Source) -> int:
    """A prompt's size in bytes of text; a token id counts as four."""
    if type(value) is list:
        return len(value) * 4
    text = _text_of(value)
    return raw.items(text) * 4 or raw.size_bytes(text)


def _prompt(value: Any, raw: Source) -> Prompt | None:
    if type(value) is list and value:
        return Prompt(b"", token_ids=len(value))
    if type(value) is not str:
        return None
    if items := raw.items(value):
        return Prompt(b"", token_ids=items)
    text, missing_bytes = raw.excerpt(value)
    return Prompt(text, missing_bytes=missing_bytes)


def _text_of(value: Any) -> str:
    """The text of a string, or of a content part (vLLM embeds those)."""
    if type(value) is str:
        return value
    gathered = _Gathered()
    gathered.add([value])
    return "\n".join(gathered.texts)


def _finished(
    body: _Body, raw: Source, prompt: Prompt, limit: int | None, prompts: int
) -> Request:
    options = body.stream_options
    sequences = max(_positive(body.n) or 1, _positive(body.best_of) or 1)
    return Request(
        prompt=prompt,
        body_bytes=raw.body_bytes,
        model=body.model[:MAX_MODEL_CHARS] if type(body.model) is str else "",
        max_tokens=limit,
        sequences=sequences,
        prompts=prompts,
        stream=body.stream is True,
        asks_usage=type(options) is dict and options.get("include_usage") is True,
    )


def _first_limit(*values: Any) -> int | None:
    for value in values:
        limit = _positive(value)
        if limit is not None:
            return min(limit, MAX_OUTPUT_TOKENS)
    return None


def _positive(value: Any) -> int | None:
    """Read a count as vLLM's validation does: 8, 8.0 and "8" are 8."""
    if value is None:
        return None
    if type(value) is str and value.isascii() and value.isdigit():
        value = int(value[:20])
    elif type(value) is float and value.is_integer():
        value = int(value)
    return value if type(value) is int and value > 0 else None


@dataclass(frozen=True, slots=True)
class Endpoint:
    """An API endpoint whose requests are routed by budget."""

    path: str
    parse: Callable[[Source], Request | None]
    """Reads a body; raises on JSON that is invalid or of other types."""
    operation: str
    """``gen_ai.operation.name`` of OpenTelemetry's semantic conventions."""
    stream_options: bool
    """Whether clients ask for a stream's usage (``stream_options.include_usage``);
    the other APIs end every stream with it."""


CHAT = Endpoint("/v1/chat/completions", _parse_chat, "chat", stream_options=True)
COMPLETIONS = Endpoint(
    "/v1/completions", _parse_completion, "text_completion", stream_options=True
)
RESPONSES = Endpoint("/v1/responses", _parse_response, "chat", stream_options=False)
MESSAGES = Endpoint("/v1/messages", _parse_chat, "chat", stream_options=False)
EMBEDDINGS = Endpoint(
    "/v1/embeddings", _parse_embedding, "embeddings", stream_options=False
)

ENDPOINTS = {
    endpoint.path: endpoint
    for endpoint in (CHAT, COMPLETIONS, RESPONSES, MESSAGES, EMBEDDINGS)
}
"""By path: the only list of them."""

DEFAULT_PATH = CHAT.path
"""The path of a request that came without one, as in a log."""


def find_endpoint(path: str) -> Endpoint | None:
    """Return the endpoint of a request path, query string and all, or None."""
    return ENDPOINTS.get(path.partition("?")[0])


def parse_source(path: str, source: Source) -> Request | None:
    """Parse an inference request; None if it is none, whatever its bytes are."""
    endpoint = find_endpoint(path)
    if endpoint is None:
        return None
    try:
        request = endpoint.parse(source)
    except (msgspec.MsgspecError, UnicodeError, RecursionError, ValueError):
        return None
    if request is None:
        return None
    if request.stream and not endpoint.stream_options:
        request = replace(request, asks_usage=True)
    if request.operation != endpoint.operation:
        request = replace(request, operation=endpoint.operation)
    return request


_ASK = b',"stream_options":{"include_usage":true}}'


def ask_for_usage(body: bytes) -> bytes | None:
    """Add ``stream_options.include_usage`` to a JSON request, byte by byte the same.

    Args:
        body: a JSON object with at least one key (it was parsed already).

    Returns:
        The new body; None if the client named ``stream_options`` itself (perhaps only
        inside a text: not worth a parse), or the body does not end as an object does.
    """
    end = body.rstrip(b" \t\r\n")
    if b'"stream_options"' in body or not end.endswith(b"}"):
        return None
    return end[:-1] + _ASK
