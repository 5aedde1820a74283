"""The limits of a request, as vLLM 0.10 to 0.32 reads them.

=========================  =========================================================
``max_tokens``             chat, completions, messages; ``sampling_params.py``
absent on completions      16 (``completion/protocol.py``); null means the window
                           before 0.20 and 16 after: read as no limit
``max_completion_tokens``  chat only, before ``max_tokens`` (``chat_completion/
                           protocol.py``); completions ignore it
``max_output_tokens``      responses (``responses/protocol.py``)
0                          no limit; with ``echo`` on completions, 1: a token is
                           generated and counted, though not returned
``min_tokens``             minimum output (``sampling_params.py``)
``ignore_eos``             without a limit, output fills the window
``truncate_prompt_tokens`` cuts the prompt to so many tokens; -1: to the window;
                           rejected above the window (``renderers/params.py``)
numbers                    as pydantic's lax mode reads an integer: 8.0, " 8 ",
                           "8_000", "+8", "8.0", true
=========================  =========================================================

Paths are those of vLLM 0.32, below ``vllm/`` or ``vllm/entrypoints/openai/``.
"""

from __future__ import annotations

import re
from typing import Any, Final

from extproc.json_object import JsonObject

MAX_OUTPUT_TOKENS: Final = 1 << 31
"""Maximum limit, to which larger limits are reduced; far above any model's window."""

COMPLETION_DEFAULT_TOKENS: Final = 16
"""vLLM's default of ``max_tokens`` for completions."""

_INTEGER = re.compile(r"[+-]?\d+(?:_\d+)*(?:\.0+)?", re.ASCII)
_MAX_DIGITS = 20


def read_integer(value: Any) -> int | None:
    """Read an integer as pydantic's lax mode does; None if it is invalid.

    The result is clamped to twice ``MAX_OUTPUT_TOKENS`` in both directions.
    """
    kind = type(value)
    if kind is str:
        value = _read_text(value)
    elif kind is float:
        value = int(value) if value.is_integer() else None
    elif kind is bool:
        value = int(value)
    elif kind is not int:
        value = None
    if value is None:
        return None
    most = 2 * MAX_OUTPUT_TOKENS
    return int(min(max(value, -most), most))


def _read_text(text: str) -> int | None:
    text = text.strip()
    if not _INTEGER.fullmatch(text):
        return None
    integer = text.partition(".")[0].replace("_", "")
    sign = -1 if integer.startswith("-") else 1
    digits = integer.lstrip("+-").lstrip("0") or "0"
    return sign * int(digits) if len(digits) <= _MAX_DIGITS else sign * 10**_MAX_DIGITS


def read_count(value: Any) -> int | None:
    """Read a limit from 1 to ``MAX_OUTPUT_TOKENS``; None if unset or not positive."""
    if value is None:
        return None
    count = value if type(value) is int else read_integer(value)
    return min(count, MAX_OUTPUT_TOKENS) if count is not None and count > 0 else None


def first_limit(body: JsonObject, *names: str) -> int | None:
    """Return the first of the named limits that is set, or None."""
    for name in names:
        if name in body:
            limit = read_count(body[name])
            if limit is not None:
                return limit
    return None


def completion_limit(body: JsonObject) -> int | None:
    """Return the output limit of a completion, in tokens, or None."""
    value = body.get("max_tokens", COMPLETION_DEFAULT_TOKENS)
    if body.get("echo") is True and read_integer(value) == 0:
        return 1
    return read_count(value)


def prompt_limit(body: JsonObject) -> int | None:
    """Return the number of tokens that the prompt is truncated to, or None."""
    return read_count(body.get("truncate_prompt_tokens"))


def is_cut_to_window(body: JsonObject) -> bool:
    """Whether the prompt is truncated to the window of the server that receives it."""
    return read_integer(body.get("truncate_prompt_tokens")) == -1
