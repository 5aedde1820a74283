"""Parses a stand-in's requests, and rejects invalid requests with vLLM's messages.

The checks and their texts are those of vLLM 0.32 (``vllm/renderers/params.py``,
``vllm/v1/engine/input_processor.py``). A prompt and ``max_tokens`` that exceed the
window only together are *not* rejected: vLLM truncates such an output
(``get_max_tokens`` in ``vllm/entrypoints/serve/utils/api_utils.py``), and so does the
stand-in.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from extproc.demo.standin.tokenizer import Tokenizer
from extproc.exchange import openai


class ServedApi(StrEnum):
    """The APIs for generation and embeddings, by path."""

    CHAT = openai.CHAT.path
    COMPLETIONS = openai.COMPLETIONS.path
    RESPONSES = openai.RESPONSES.path
    MESSAGES = openai.MESSAGES.path
    EMBEDDINGS = openai.EMBEDDINGS.path


class RequestRefusedError(Exception):
    """A response other than 200, with vLLM's message."""

    def __init__(
        self,
        message: str,
        *,
        status: int = 400,
        kind: str = "BadRequestError",
        parameter: str | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.kind = kind
        self.parameter = parameter

    def body(self, endpoint: ServedApi) -> dict[str, object]:
        """Return the response as JSON, in Anthropic's format on Anthropic's path."""
        if endpoint is ServedApi.MESSAGES:
            return {
                "type": "error",
                "error": {"type": self.kind, "message": str(self)},
            }
        return {
            "error": {
                "message": str(self),
                "type": self.kind,
                "param": self.parameter,
                "code": self.status,
            }
        }


@dataclass(frozen=True, slots=True)
class Job:
    """One request with its token counts."""

    endpoint: ServedApi
    model: str
    prompt_tokens: tuple[int, ...]
    """Token count of each prompt (a completion may have several)."""
    choices: int
    """Number of outputs to generate for each prompt (``n``)."""
    max_tokens: int | None
    """The client's limit for one output; None if unset."""
    to_the_limit: bool
    """Whether the output continues to its limit (``ignore_eos``)."""
    stream: bool
    include_usage: bool
    """Whether the client requested usage in its stream."""
    seed: int
    """A number derived from the prompt alone."""


def read_job(
    endpoint: ServedApi, raw: bytes, tokenizer: Tokenizer, max_model_len: int
) -> Job:
    """Parse a request, count its tokens, and check them against the window.

    This takes about 0.2 us for each byte of the body, so call it in a thread.

    Raises:
        RequestRefusedError: vLLM would reject the request.
    """
    try:
        body = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise RequestRefusedError(f"JSON decode error: {error}") from error
    if not isinstance(body, dict):
        raise RequestRefusedError("Input should be a valid dictionary")
    limit_name, max_tokens = _limit(endpoint, body)
    if max_tokens is not None and max_tokens > max_model_len:
        raise RequestRefusedError(
            f"{limit_name}={max_tokens} cannot be greater than "
            f"max_model_len={max_model_len}. Please request fewer output tokens.",
            parameter=limit_name,
        )
    prompt_tokens = _count_prompts(endpoint, body, tokenizer)
    for count in prompt_tokens:
        _check_window(
            count, max_model_len, generates=endpoint is not ServedApi.EMBEDDINGS
        )
    stream_options = body.get("stream_options")
    return Job(
        endpoint=endpoint,
        model=str(body.get("model") or "stand-in"),
        prompt_tokens=prompt_tokens,
        choices=_integer(body, "n", at_least=1) or 1,
        max_tokens=max_tokens,
        to_the_limit=body.get("ignore_eos") is True,
        stream=body.get("stream") is True,
        include_usage=isinstance(stream_options, dict)
        and stream_options.get("include_usage") is True,
        seed=sum(prompt_tokens) * 2654435761,
    )


def _limit(endpoint: ServedApi, body: Mapping[str, object]) -> tuple[str, int | None]:
    names = {
        ServedApi.CHAT: ("max_completion_tokens", "max_tokens"),
        ServedApi.RESPONSES: ("max_output_tokens",),
        ServedApi.EMBEDDINGS: (),
    }.get(endpoint, ("max_tokens",))
    for name in names:
        value = _integer(body, name, at_least=1)
        if value is not None:
            return name, value
    return "max_tokens", None


def _integer(body: Mapping[str, object], name: str, *, at_least: int) -> int | None:
    value = body.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int):
        raise RequestRefusedError(
            f"{name}: Input should be a valid integer", parameter=name
        )
    if value < at_least:
        raise RequestRefusedError(
            f"{name} must be at least {at_least}, got {value}.", parameter=name
        )
    return value


def _check_window(prompt_tokens: int, max_model_len: int, *, generates: bool) -> None:
    if prompt_tokens > max_model_len:
        # The tokenizer stops one token past the window, so the exact count is unknown.
        qualifier = "at least " if prompt_tokens == max_model_len + 1 else ""
        raise RequestRefusedError(
            f"This model's maximum context length is {max_model_len} tokens. However, "
            f"your prompt contains {qualifier}{prompt_tokens} input tokens, which "
            "exceeds this limit even without any output tokens. "
            "Please reduce the length of the input prompt.",
            parameter="input_tokens",
        )
    if prompt_tokens == max_model_len and generates:
        raise RequestRefusedError(
            f"The decoder prompt (length {prompt_tokens}) plus the number of requested "
            "output tokens (at least 1) is longer than the maximum model length of "
            f"{max_model_len}. Make sure that `max_model_len` is no smaller than the "
            "number of text tokens (prompt + requested output tokens)."
        )


def _count_prompts(
    endpoint: ServedApi, body: Mapping[str, object], tokenizer: Tokenizer
) -> tuple[int, ...]:
    match endpoint:
        case ServedApi.CHAT:
            messages = _list_of_objects(body, "messages")
            return (tokenizer.count_chat(messages, _tools(body)),)
        case ServedApi.MESSAGES:
            messages = _list_of_objects(body, "messages")
            if system := body.get("system"):
                messages = [{"role": "system", "content": system}, *messages]
            return (tokenizer.count_chat(messages, _tools(body)),)
        case ServedApi.RESPONSES:
            given = body.get("input")
            messages = (
                [{"role": "user", "content": given}]
                if isinstance(given, str)
                else _list_of_objects(body, "input")
            )
            if instructions := body.get("instructions"):
                messages = [{"role": "system", "content": instructions}, *messages]
            return (tokenizer.count_chat(messages, _tools(body)),)
        case ServedApi.COMPLETIONS:
            return _count_texts(body, "prompt", tokenizer)
        case ServedApi.EMBEDDINGS:
            return _count_texts(body, "input", tokenizer)


def _tools(body: Mapping[str, object]) -> Sequence[Mapping[str, object]]:
    return _list_of_objects(body, "tools") if body.get("tools") else ()


def _list_of_objects(body: Mapping[str, object], name: str) -> list[dict[str, object]]:
    value = body.get(name)
    if not isinstance(value, list) or not value:
        raise RequestRefusedError(f"{name}: Field required", parameter=name)
    if not all(isinstance(item, dict) for item in value):
        raise RequestRefusedError(
            f"{name}: Input should be a valid dictionary", parameter=name
        )
    return value


def _count_texts(
    body: Mapping[str, object], name: str, tokenizer: Tokenizer
) -> tuple[int, ...]:
    """Count the tokens of a text, of token ids, or of a list of either."""
    value = body.get(name)
    if isinstance(value, str):
        return (tokenizer.count_completion_prompt(value),)
    if isinstance(value, list) and value:
        if _is_token_ids(value):
            return (len(value),)
        counts = []
        for item in value:
            if isinstance(item, str):
                counts.append(tokenizer.count_completion_prompt(item))
            elif isinstance(item, list) and item and _is_token_ids(item):
                counts.append(len(item))
            else:
                break
        else:
            return tuple(counts)
    raise RequestRefusedError(f"{name}: Input should be a valid string", parameter=name)


def _is_token_ids(value: Sequence[object]) -> bool:
    return all(isinstance(item, int) and not isinstance(item, bool) for item in value)
