"""Token counts of a usage object, in the field names of OpenAI or Anthropic.

This is the only code for the two ways of counting cached tokens: OpenAI's prompt count
includes them, Anthropic's ``input_tokens`` does not. Readers of response bodies,
Envoy's access log and an operator's own files all use it.
"""

from collections.abc import Callable
from dataclasses import dataclass

#: Fields in which Anthropic reports the prompt tokens that ``input_tokens`` excludes.
#: These tokens are read from the cache or written to the cache.
_BESIDE_INPUT_TOKENS = ("cache_read_input_tokens", "cache_creation_input_tokens")
#: Fields in which a usage object may report the tokens read from a cache.
_CACHED = ("cached_tokens", "cache_read_input_tokens", "prompt_cache_hit_tokens")


@dataclass(frozen=True, slots=True)
class TokenCounts:
    """The counts in a usage object, each None if it is not reported."""

    prompt: int | None
    """Tokens of the whole prompt, including cached ones."""
    completion: int | None
    """Tokens of the output."""
    cached: int | None = None
    """Prompt tokens read from a cache."""


def read_token_counts(count: Callable[[str], int | None]) -> TokenCounts:
    """Read the counts of one usage object.

    Args:
        count: returns the count under a name, or None if it is absent or invalid.
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
