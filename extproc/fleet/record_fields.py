"""The fields of a record: token counts, prefix hashes and session.

A record is a list of levels: its own fields first, then those of its nested mappings,
breadth first. Keys are compared without regard to case, "_", "-", "." and spaces. For a
key such as ``response.usage.prompt_tokens``, the part after ``usage`` also matches.
"""

import json
import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, TypeAlias

from extproc.json_object import JsonObject
from extproc.routing.token_counts import TokenCounts, read_token_counts

#: One level of a record, a mapping from plain keys to values.
Level: TypeAlias = JsonObject

#: Keys of prompt and output counts, in plain spelling, in formats that do not use the
#: names of a usage object. The prompt count includes cached tokens.
COLUMN_PAIRS = (
    ("contexttokens", "generatedtokens"),  # Azure LLM inference traces, 2023 and 2024
    ("inputlength", "outputlength"),  # Mooncake, Bailian
    ("requesttokens", "responsetokens"),  # BurstGPT
    ("numprefilltokens", "numdecodetokens"),  # Vidur, etalon
    ("inputlens", "outputlens"),  # `vllm bench serve --save-detailed`
    ("inputlen", "outputlen"),
    ("inputtoks", "outputtoks"),  # LLMServingSim
    ("inputsequencelength", "outputsequencelength"),  # AIPerf, GenAI-Perf
    ("promptlen", "outputlen"),
    ("promptlength", "outputlength"),
    ("promptlen", "responselen"),
    ("promptlength", "responselength"),
    ("numprompttokens", "numgenerationtokens"),
    ("numprompttokens", "numoutputtokens"),
    ("numinputtokens", "numoutputtokens"),
    ("prompttokencount", "candidatestokencount"),  # Gemini
)
_PROMPTS = ("prompttokens", "inputtokens", *dict(COLUMN_PAIRS))
_OUTPUTS = (
    "completiontokens",
    "outputtokens",
    *dict.fromkeys(output for _, output in COLUMN_PAIRS),
)
#: Keys of the number of tokens found in a cache, in any level of the record.
_CACHED = (
    "cachedtokens",
    "prompttokensdetailscachedtokens",
    "inputtokensdetailscachedtokens",
    "cachereadinputtokens",
    "prompttokensdetailscachereadtokens",
    "inputcachedtokens",
    "cachedcontenttokencount",
    "numcachedtokens",
)
_HASHES = ("hashids", "blockhashids", "blockhashes", "prefixhashes")
_SESSIONS = (
    "sessionid",
    "conversationid",
    "chatsessionid",
    "threadid",
    "genaiconversationid",
    "session",
    "conversation",
)
#: Keys of the number of requests in one record, as in billing exports.
_REQUEST_COUNTS = ("nummodelrequests", "apirequests", "numrequests", "requestcount")
#: Fields whose text may be JSON with counts, as in LiteLLM's spreadsheets.
JSON_CELLS = frozenset({"usage", "response", "metadata", "attributes", "labels"})
#: Fields with the router's estimates and decisions, which are not counts.
_ESTIMATES = frozenset({"decision", "extproctokenbudget"})
_DEPTH = 5
#: Spellings of a missing value in files.
_MISSING = frozenset({"", "-", "nan", "nat", "null", "none", "n/a", "na"})


class FieldError(ValueError):
    """An invalid value of a field; the message has the value and the expected form."""


@lru_cache(maxsize=65_536)
def plain(key: str) -> str:
    """Return a key without case, separators and spaces."""
    return "".join(char for char in key.lower() if char.isalnum())


@lru_cache(maxsize=65_536)
def _spellings(key: str) -> tuple[str, ...]:
    """Return the plain names of a key: the whole key, and the part after ``usage``."""
    parts = re.split(r"(?:^|[._/ ])usage[._/ ]", key, maxsplit=1, flags=re.IGNORECASE)
    whole = plain(key)
    # OpenTelemetry has a separate rule for counts (see _opentelemetry).
    if len(parts) == 1 or "genaiusage" in whole:
        return (whole,)
    return (whole, plain(parts[1]))


def levels(record: JsonObject) -> list[Level]:
    """Return a record's own fields, then those of nested mappings, breadth first."""
    found: list[Level] = []
    pending: list[tuple[JsonObject, int]] = [(record, 0)]
    for mapping, depth in pending:
        level: dict[str, Any] = {}
        for key, raw in mapping.items():
            if type(raw) is dict and plain(key) in _ESTIMATES:
                continue
            value = _attributes(raw) if type(raw) is list else raw
            if type(value) is str and value[:1] == "{" and plain(key) in JSON_CELLS:
                value = _json_cell(value)
            if isinstance(value, Mapping):
                value, nested = _unwrapped(value), value
                if value is nested:
                    if depth < _DEPTH:
                        pending.append((nested, depth + 1))
                    continue
            if not _is_missing(value):
                for name in _spellings(key):
                    level.setdefault(name, value)
        found.append(level)
    return found


def _is_missing(value: Any) -> bool:
    return value is None or (
        type(value) is str and len(value) < 5 and value.strip().lower() in _MISSING
    )


def _attributes(values: list[Any]) -> Any:
    """Return OTLP's [{"key": ..., "value": {...}}] as a mapping; keep other lists."""
    first = values[0] if values else None
    if not (isinstance(first, dict) and "key" in first and "value" in first):
        return values
    return {
        str(item["key"]): item.get("value")
        for item in values
        if isinstance(item, dict) and "key" in item
    }


def _unwrapped(value: JsonObject) -> Any:
    """Return the scalar in OTLP's {"intValue": "7"} or {"value": 7, "unit": ...}."""
    if len(value) == 1:
        (key,) = value
        if key in ("intValue", "doubleValue", "stringValue"):
            return value[key]
    inner = value.get("value")
    return inner if type(inner) in (int, float) else value


def _json_cell(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


def find(record: Sequence[Level], names: Sequence[str]) -> Any:
    """Return the value of the first name found, outermost levels first, or None."""
    for level in record:
        for name in names:
            if name in level:
                return level[name]
    return None


def find_counts(record: Sequence[Level]) -> TokenCounts | None:
    """Return prompt, output and cached tokens; None if prompt or output is missing.

    Raises:
        FieldError: a count is not a number >= 0, or a record covers several requests.
    """
    for level in record:
        counts = _usage(level) or _opentelemetry(level) or _pair(level)
        if counts is not None:
            break
    else:
        prompt, output = find(record, _PROMPTS), find(record, _OUTPUTS)
        if prompt is None or output is None:
            return None
        counts = TokenCounts(as_count(prompt), as_count(output))
    _refuse_sums(record)
    cached = counts.cached
    if cached is None:
        said = find(record, _CACHED)
        cached = None if said is None else as_count(said)
    if cached is not None and counts.prompt is not None:
        cached = min(cached, counts.prompt)
    return TokenCounts(counts.prompt, counts.completion, cached)


def _complete(counts: TokenCounts) -> TokenCounts | None:
    missing = counts.prompt is None or counts.completion is None
    return None if missing else counts


def _usage(level: Level) -> TokenCounts | None:
    """Return counts under the names of OpenAI's or Anthropic's usage object."""

    def count(name: str) -> int | None:
        value = level.get(plain(name))
        return None if value is None else as_count(value)

    return _complete(read_token_counts(count))


def _opentelemetry(level: Level) -> TokenCounts | None:
    """Return counts by the semantic conventions for generative AI, flat or prefixed.

    By the conventions, ``gen_ai.usage.input_tokens`` includes cached tokens; an older
    instrumentation that excludes cached tokens is recognized if its count of cached
    tokens exceeds the input.
    """
    ours = {
        key.split("genaiusage", 1)[1]: value
        for key, value in level.items()
        if "genaiusage" in key
    }
    prompt = _first_count(ours, ("inputtokens", "prompttokens"))
    output = _first_count(ours, ("outputtokens", "completiontokens"))
    if prompt is None or output is None:
        return None
    read = _first_count(ours, ("cachereadinputtokens", "inputtokenscached"))
    written = _first_count(ours, ("cachecreationinputtokens",))
    beside = (read or 0) + (written or 0)
    return TokenCounts(prompt + beside if beside > prompt else prompt, output, read)


def _pair(level: Level) -> TokenCounts | None:
    for prompt, output in COLUMN_PAIRS:
        if prompt in level and output in level:
            return TokenCounts(as_count(level[prompt]), as_count(level[output]))
    return None


def _first_count(level: Level, names: Sequence[str]) -> int | None:
    value = find([level], names)
    return None if value is None else as_count(value)


def _refuse_sums(record: Sequence[Level]) -> None:
    requests = find(record, _REQUEST_COUNTS)
    if requests is not None and (as_count(requests) or 0) > 1:
        raise FieldError(f"sums of {requests} requests; expected one record a request")


def knows_counts(columns: Sequence[str]) -> tuple[bool, bool]:
    """Return whether the columns include a prompt count, and an output count."""
    known = {name for column in columns for name in _spellings(column)}
    otel = {name.split("genaiusage", 1)[1] for name in known if "genaiusage" in name}
    known |= otel & {"inputtokens", "outputtokens", "prompttokens", "completiontokens"}
    return not known.isdisjoint(_PROMPTS), not known.isdisjoint(_OUTPUTS)


# "1,234", "1.234", "1 234", "1'234", "1_234": groups of three after a separator.
_GROUPED = re.compile(r"\d{1,3}(?:[,.'_ \u00a0\u202f\u2019]\d{3})+")
_DECIMALS = re.compile(r"[.,]0*$")


def as_count(value: Any) -> int | None:
    """Return a token count from a whole number, "1,234" or "7.0"; None for NaN.

    Raises:
        FieldError: the value is not a number, is negative, or is at least 10^9.
    """
    if type(value) is int and 0 <= value < 1_000_000_000:
        return value
    text = value
    if isinstance(value, str):
        text = value.strip()
        if _GROUPED.fullmatch(text):
            text = re.sub(r"\D", "", text)
        elif "." in text or "," in text:
            whole = _DECIMALS.sub("", text)
            text = re.sub(r"\D", "", whole) if _GROUPED.fullmatch(whole) else whole
    try:
        number = float(text)
    except (TypeError, ValueError):
        raise FieldError(f"{value!r}; expected a token count") from None
    if number != number:
        return None
    if not 0 <= number < 1e9:
        raise FieldError(f"{value!r}; expected a token count >= 0")
    return int(number)


def find_hash_ids(record: Sequence[Level]) -> tuple[int, ...] | None:
    """Return the chained hashes of the prompt's blocks, as in Mooncake and Bailian.

    Raises:
        FieldError: the value is neither whole numbers nor text such as "11|22".
    """
    value = find(record, _HASHES)
    if isinstance(value, str):
        value = re.split(r"[|,; ]+", value.strip("[] "))
    if not isinstance(value, list):
        return None
    try:
        return tuple(int(one) for one in value)
    except (TypeError, ValueError):
        raise FieldError(
            f"{str(value)[:40]}; expected whole numbers as hashes"
        ) from None


def find_session(record: Sequence[Level]) -> str | None:
    """Return the identifier of a request's conversation, or None."""
    value = find(record, _SESSIONS)
    return None if value is None else str(value)


def find_turn(record: Sequence[Level]) -> tuple[str, str] | None:
    """Return Bailian's ids of a request and its predecessor ("-1" if none), or None."""
    own, parent = find(record, ("chatid",)), find(record, ("parentchatid",))
    return None if own is None or parent is None else (str(own), str(parent))
