"""Requests of the OpenAI and Anthropic APIs, as vLLM serves them.

``ENDPOINTS`` is the table of APIs. An invalid request goes to the default pool, whose
backend rejects it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate, chain, count
from operator import add
from typing import Any

import msgspec
from msgspec.structs import replace

from extproc.exchange.limits import (
    completion_limit,
    first_limit,
    is_cut_to_window,
    prompt_limit,
    read_count,
)
from extproc.exchange.pairs import RERANK_FIELDS, SCORE_FIELDS, longest_pair
from extproc.exchange.prompt_parts import PromptParts, compact
from extproc.exchange.source import Source
from extproc.json_object import JsonObject
from extproc.routing.request import MAX_MODEL_CHARS, OptionalKind, Prompt, Request

_NOT_PROMPT = frozenset(
    """
    add_generation_prompt add_special_tokens allowed_token_ids background bad_words
    best_of betas cache_control cache_salt container context_management
    continue_final_message dimensions echo ec_transfer_params embed_dtype
    enable_response_messages encoding_format endianness extra_headers
    frequency_penalty guided_choice guided_decoding_backend guided_grammar guided_json
    guided_regex guided_whitespace_pattern ignore_eos include include_reasoning
    include_stop_str_in_output inference_geo kv_transfer_params length_penalty
    logit_bias logits_processors logprob_token_ids logprobs max_completion_tokens
    max_output_tokens max_tokens max_tool_calls media_io_kwargs metadata min_p
    min_tokens mm_payload mm_processor_kwargs modalities model n normalize
    output_config output_format padding parallel_tool_calls prediction
    presence_penalty priority prompt_cache_key prompt_cache_retention prompt_logprobs
    reasoning reasoning_effort repetition_detection repetition_penalty request_id
    response_format return_mm_kwargs return_prompt_text return_token_ids
    return_token_offsets return_tokens_as_token_ids routed_experts_prompt_start
    safety_identifier seed service_tier session_id skip_special_tokens
    spaces_between_special_tokens speed stop stop_sequences stop_token_ids store
    stream stream_interval stream_options structural_tag structured_outputs
    temperature text thinking thinking_token_budget tool_choice top_k top_logprobs
    top_p truncate truncate_prompt_tokens truncation truncation_side use_activation
    use_beam_search user verbosity vllm_xargs watermarking web_search_options
    """.split()  # noqa: SIM905 - a list of words, not of lines
)
"""Body fields that do not become part of the prompt: those of vLLM 0.8 to 0.32
(``protocol.py`` of each API) and those of OpenAI's and Anthropic's API references that
set sampling, limits, output schemas, or accounting."""

_OPAQUE = frozenset({"chat_template", "prompt_embeds"})
"""Fields with content that cannot be estimated."""

_ELSEWHERE = ("previous_response_id", "conversation")
"""Fields of the Responses API that refer to a conversation stored on the server."""


class NotARequestError(ValueError):
    """The body is not a valid request; the message names the field, not its value."""


_CHAT = _NOT_PROMPT | {"messages", "system", "tools"}
_COMPLETION = _NOT_PROMPT | {"prompt"}
_EMBEDDING = _NOT_PROMPT | {"input"}
_CUTS = ("max_tokens_per_doc", "max_tokens_per_query")
"""Fields that truncate one side of a pair. The text in the body is then an upper bound
of what the model reads."""
_PAIRS = _NOT_PROMPT.union(_CUTS, *RERANK_FIELDS, *SCORE_FIELDS) | {
    "max_chunks_per_doc",
    "rank_fields",
    "return_documents",
    "top_n",
}
_RESPONSE = _NOT_PROMPT.union(_ELSEWHERE) | {
    "input",
    "instructions",
    "previous_input_messages",
    "tools",
}

_decode = msgspec.json.Decoder().decode


def _object(source: Source) -> JsonObject:
    try:
        body = _decode(source.content)
    except msgspec.DecodeError as error:
        if "out of range" not in str(error):
            raise NotARequestError(f"not JSON: {error}") from None
        # The body has a number too large for a float, which vLLM parses as infinite.
        body = json.loads(bytes(source.content))
    if type(body) is not dict:
        raise NotARequestError(f"a JSON {_kind(body)}; expected an object")
    return body


def _kind(value: Any) -> str:
    return _KINDS.get(type(value), "number")


_KINDS = {
    type(None): "null",
    bool: "boolean",
    str: "text",
    list: "list",
    dict: "object",
}


def _parse_chat(body: JsonObject, source: Source) -> Request:
    parts = PromptParts(source)
    system = body.get("system")
    if system is not None:
        parts.add(system)
    messages = _messages(body.get("messages"), "messages")
    parts.add_messages(messages)
    limit = first_limit(body, "max_completion_tokens", "max_tokens")
    _add_rest(parts, body, _CHAT)
    turns = len(messages) + (system is not None)
    return _request(body, source, parts, turns, limit)


def _messages(value: Any, name: str) -> list[JsonObject]:
    if type(value) is not list or not value:
        found = "an empty list" if value == [] else _kind(value)
        found = "missing" if value is None else found
        raise NotARequestError(f"{name}: {found}; expected a list of messages")
    kinds = [*map(type, value)]
    if kinds.count(dict) < len(kinds):
        position = next(i for i, kind in enumerate(kinds) if kind is not dict)
        found = _kind(value[position])
        raise NotARequestError(f"{name}[{position}]: {found}; expected an object")
    return value


def _parse_completion(body: JsonObject, source: Source) -> Request:
    parts = PromptParts(source)
    _add_rest(parts, body, _COMPLETION)
    prompt = body.get("prompt")
    if prompt is None and body.get("prompt_embeds") is not None:
        prompt = ""
    return _request_of_prompts(
        body, "prompt", prompt, source, parts, completion_limit(body)
    )


def _parse_embedding(body: JsonObject, source: Source) -> Request:
    if body.get("input") is None and body.get("messages") is not None:
        # vLLM also embeds a conversation, from ``messages`` instead of ``input``.
        request = _parse_chat(body, source)
    else:
        parts = PromptParts(source)
        _add_rest(parts, body, _EMBEDDING)
        request = _request_of_prompts(
            body, "input", body.get("input"), source, parts, None
        )
    return replace(request, generates=False, max_tokens=None)


def _parse_rerank(body: JsonObject, source: Source) -> Request:
    return _request_of_pairs(body, source, RERANK_FIELDS)


def _parse_score(body: JsonObject, source: Source) -> Request:
    return _request_of_pairs(body, source, SCORE_FIELDS)


def _request_of_pairs(
    body: JsonObject, source: Source, fields: Sequence[tuple[str, str]]
) -> Request:
    found = longest_pair(body, source, fields)
    if found is None:
        names = " or ".join(" and ".join(pair) for pair in fields)
        raise NotARequestError(f"no pair of texts; expected {names}")
    parts, pairs = found
    parts.opaque |= any(read_count(body.get(name)) for name in _CUTS)
    _add_rest(parts, body, _PAIRS)
    request = _request(body, source, parts, 1, None)
    return replace(request, prompts=pairs, generates=False)


def _parse_response(body: JsonObject, source: Source) -> Request:
    parts = PromptParts(source)
    parts.opaque = any(body.get(name) is not None for name in _ELSEWHERE)
    instructions, items = body.get("instructions"), body.get("input")
    turns = 1 + (instructions is not None)
    if instructions is not None:
        parts.add(instructions)
    for message in body.get("previous_input_messages") or ():
        parts.add_item(message)
        turns += 1
    if type(items) is str:
        parts.texts.append(items)
    elif type(items) is list:
        for item in items:
            parts.add_item(item)
        turns += max(0, len(items) - 1)
    else:
        found = "missing" if items is None else _kind(items)
        raise NotARequestError(f"input: {found}; expected a text or a list of items")
    if body.get("prompt") is not None:
        parts.opaque = True  # a stored prompt; the request contains only its variables
    _add_rest(parts, body, _RESPONSE)
    limit = first_limit(body, "max_output_tokens")
    request = _request(body, source, parts, turns, limit)
    return replace(request, stored=_is_stored(body))


def _is_stored(body: JsonObject) -> bool | None:
    """Whether the server stores the response, or has stored the conversation before."""
    if body.get("background") is True:
        return True
    if any(body.get(name) is not None for name in _ELSEWHERE):
        return True
    store = body.get("store")
    return store if type(store) is bool else None


def _add_rest(parts: PromptParts, body: JsonObject, done: frozenset[str]) -> None:
    """Add the remaining fields of a body that templates may render, except ``done``."""
    if body.keys() <= done:
        return
    for key in body.keys() - done:
        value = body[key]
        if value is None:
            continue
        if key in _OPAQUE:
            parts.opaque = True
        if key == "prompt_embeds":
            parts.add_file()  # base64 is not text
        elif key == "documents":
            parts.add_optional(OptionalKind.DOCUMENTS, value)
        elif key == "chat_template_kwargs" and type(value) is dict:
            parts.opaque |= "chat_template" in value
            parts.add_optional(OptionalKind.DOCUMENTS, value.get("documents"))
            rest = {name: each for name, each in value.items() if name != "documents"}
            parts.add_other(rest)
        else:
            parts.add_other(value)


def _request(
    body: JsonObject,
    source: Source,
    parts: PromptParts,
    messages: int,
    limit: int | None,
) -> Request:
    tools = body.get("tools")
    tools_text, missing_tools_bytes = b"", 0
    if tools:
        tools_text, missing_tools_bytes = source.excerpt(compact(tools).decode())
    joined = "\n".join(parts.texts)
    text, missing_bytes = source.excerpt(joined)
    ends: tuple[int, ...] = ()
    if not missing_bytes:
        ends = _message_ends(parts, len(text), ascii_only=joined.isascii())
    prompt = Prompt(
        text=text,
        messages=messages,
        tools_text=tools_text,
        tools=len(tools) if type(tools) is list else int(bool(tools)),
        images=parts.images,
        audios=parts.audios,
        files=parts.files,
        media=parts.media,
        missing_bytes=missing_bytes,
        missing_tools_bytes=missing_tools_bytes,
        optional=parts.optional,
        opaque=parts.opaque,
        message_ends=ends,
    )
    return _finished(body, source, prompt, limit, prompts=1)


def _message_ends(
    parts: PromptParts, text_bytes: int, *, ascii_only: bool
) -> tuple[int, ...]:
    """Return the byte offset at which each message ends in the joined text.

    For many short messages, the loop runs in C.
    """
    if len(parts.message_texts) == 1:
        return (text_bytes,)
    texts = list(chain.from_iterable(parts.message_texts))
    lead = parts.texts[: parts.leading]
    sizes = list(map(len, texts if ascii_only else map(str.encode, texts)))
    start = sum(map(len, lead if ascii_only else map(str.encode, lead))) + len(lead)
    # A newline follows each text.
    ends = list(map(add, accumulate(sizes), count(start)))
    if len(texts) == len(parts.message_texts) == sum(map(bool, parts.message_texts)):
        return tuple(ends)
    numbers = accumulate(map(len, parts.message_texts))
    return tuple([ends[n - 1] if n else max(0, start - 1) for n in numbers])


def _request_of_prompts(
    body: JsonObject,
    name: str,
    value: Any,
    source: Source,
    parts: PromptParts,
    limit: int | None,
) -> Request:
    if type(value) is list and value and type(value[0]) is not int:
        # Each prompt is a separate sequence, so the longest one determines which pools
        # fit.
        longest = max(value, key=lambda each: _rough_tokens(each, source))
        prompts = len(value)
        if type(longest) is dict:  # a content part, which vLLM also embeds
            parts.add([longest])
            longest = "\n".join(parts.texts)
    else:
        longest, prompts = value, 1
    prompt = _prompt(longest, source)
    if prompt is None:
        found = "missing" if value is None else _kind(value)
        raise NotARequestError(f"{name}: {found}; expected texts or lists of token ids")
    prompt = replace(
        prompt,
        images=parts.images,
        audios=parts.audios,
        files=parts.files,
        media=parts.media,
        optional=parts.optional,
        opaque=parts.opaque,
    )
    return _finished(body, source, prompt, limit, prompts)


def _rough_tokens(value: Any, source: Source) -> int:
    """A prompt's size in bytes of text; each token id counts as four bytes."""
    if type(value) is list:
        return len(value) * 4
    if type(value) is str:
        return source.items(value) * 4 or source.size_bytes(value)
    parts = PromptParts(source)
    parts.add([value])
    return parts.size_bytes


def _prompt(value: Any, source: Source) -> Prompt | None:
    if type(value) is list and value:
        return Prompt(b"", token_ids=len(value))
    if type(value) is not str:
        return None
    if items := source.items(value):
        return Prompt(b"", token_ids=items)
    text, missing_bytes = source.excerpt(value)
    return Prompt(text, missing_bytes=missing_bytes)


def _finished(
    body: JsonObject,
    source: Source,
    prompt: Prompt,
    limit: int | None,
    prompts: int,
) -> Request:
    options, model = body.get("stream_options"), body.get("model")
    request = Request(
        prompt=prompt,
        body_bytes=source.body_bytes,
        model=model[:MAX_MODEL_CHARS] if type(model) is str else "",
        max_tokens=limit,
        prompts=prompts,
        stream=body.get("stream") is True,
        asks_usage=type(options) is dict and options.get("include_usage") is True,
    )
    if body.keys().isdisjoint(_UNUSUAL):
        return request
    sequences = (read_count(body.get(name)) or 1 for name in ("n", "best_of"))
    return replace(
        request,
        sequences=max(sequences),
        min_tokens=read_count(body.get("min_tokens")) or 0,
        ignore_eos=body.get("ignore_eos") is True,
        prompt_limit=prompt_limit(body),
        cut_to_window=is_cut_to_window(body),
    )


_UNUSUAL = frozenset(
    {"best_of", "ignore_eos", "min_tokens", "n", "truncate_prompt_tokens"}
)


@dataclass(frozen=True, slots=True)
class Endpoint:
    """An API endpoint whose requests are routed by budget."""

    path: str
    parse: Callable[[JsonObject, Source], Request]
    """Parses a body; raises ``NotARequestError``."""
    operation: str
    """``gen_ai.operation.name`` of OpenTelemetry's semantic conventions."""
    stream_options: bool
    """Whether a stream reports usage only if the client requests it
    (``stream_options.include_usage``). Streams of other APIs always end with usage."""


CHAT = Endpoint("/v1/chat/completions", _parse_chat, "chat", stream_options=True)
COMPLETIONS = Endpoint(
    "/v1/completions", _parse_completion, "text_completion", stream_options=True
)
RESPONSES = Endpoint("/v1/responses", _parse_response, "chat", stream_options=False)
MESSAGES = Endpoint("/v1/messages", _parse_chat, "chat", stream_options=False)
EMBEDDINGS = Endpoint(
    "/v1/embeddings", _parse_embedding, "embeddings", stream_options=False
)

_RERANK = tuple(
    Endpoint(path, _parse_rerank, "rerank", stream_options=False)
    for path in ("/v1/rerank", "/v2/rerank", "/rerank")
)
_SCORE = tuple(
    Endpoint(path, _parse_score, "score", stream_options=False)
    for path in ("/v1/score", "/score")
)

ENDPOINTS = {
    endpoint.path: endpoint
    for endpoint in (
        *(CHAT, COMPLETIONS, RESPONSES, MESSAGES, EMBEDDINGS),
        *_RERANK,
        *_SCORE,
    )
}
"""The routed APIs by path; the only list of them."""

DEFAULT_PATH = CHAT.path
"""The path assumed for a request without a path, as in a log."""


def parse_source(endpoint: Endpoint, source: Source) -> Request:
    """Parse an inference request.

    Raises:
        NotARequestError: the body is invalid. No bytes cause any other error.
    """
    try:
        request = endpoint.parse(_object(source), source)
    except NotARequestError:
        raise
    except RecursionError:
        raise NotARequestError("nested too deeply") from None
    except UnicodeError:
        raise NotARequestError("a text is not Unicode") from None
    except (msgspec.MsgspecError, ValueError):
        raise NotARequestError("not JSON") from None
    if request.stream and not endpoint.stream_options:
        request = replace(request, asks_usage=True)
    if request.operation != endpoint.operation:
        request = replace(request, operation=endpoint.operation)
    return request


_ASK = b',"stream_options":{"include_usage":true}}'


def ask_for_usage(body: bytes) -> bytes | None:
    """Add ``stream_options.include_usage`` to a JSON request; keep all other bytes.

    Args:
        body: a JSON object with at least one key (it was parsed already).

    Returns:
        The new body; None if ``stream_options`` occurs in the body (perhaps only inside
            a text, but parsing to find out is not worth it), or if the body does not
            end like an object.
    """
    end = body.rstrip(b" \t\r\n")
    if b'"stream_options"' in body or not end.endswith(b"}"):
        return None
    return end[:-1] + _ASK
