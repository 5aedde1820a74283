"""Token counts out of a usage object, in the names of OpenAI or of Anthropic.

The one place that knows how the two count what came from a cache: OpenAI's prompt
includes it, Anthropic's ``input_tokens`` does not. Response bodies, Envoy's access
log and an operator's own files are all read by this rule.
"""

from collections.abc import Callable
from dataclasses import dataclass

#: Anthropic's counts of a prompt beside ``input_tokens``: read from its cache, and
#: written to it.
_BESIDE_INPUT_TOKENS = ("cache_read_input_tokens", "cache_creation_input_tokens")
#: Tokens found in a cache, where the usage object itself says so.
_CACHED = ("cached_tokens", "cache_read_input_tokens", "prompt_cache_hit_tokens")


@dataclass(frozen=True, slots=True)
class TokenCounts:
    """What a usage object counts; None for what it does not say."""

    prompt: int | None
    """Tokens of the whole prompt, cached ones included."""
    completion: int | None
    """Tokens of the output."""
    cached: int | None = None
    """Those of the prompt that were found in a cache."""


def read_token_counts(count: Callable[[str], int | None]) -> TokenCounts:
    """Read the counts of one usage object.

    Args:
        count: the count under a name, or None if it is absent or not a count.
    """
    prompt = count("prompt_tokens")
    if prompt is None:
        prompt = count("input_tokens")
        if prompt is not None:
            prompt += sum(count(name) or 0 for name in _BESIDE_INPUT_TOKENS)
    completion = count("completion_tokens")
    if completion is None:
        completion = count("output_tokens")
    found = (count(name) for name in _CACHED)
    cached = next((tokens for tokens in found if tokens is not None), None)
    return TokenCounts(prompt, completion, cached)
