"""Counts prompt tokens as a real model does, with Mistral's Tekken vocabulary.

The wheel of mistral-common contains the vocabulary, so nothing is downloaded. tiktoken,
which mistral-common itself uses for encoding, loads the vocabulary in a third of
mistral-common's time. The prompt is a conversation in Mistral's instruct template
(version 3); special tokens are counted without being rendered, because each is one
token.
"""

from __future__ import annotations

import base64
import importlib.util
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import tiktoken

_VOCABULARY = "data/tekken_240911.json"

# Pixtral encodes an image of 512 x 512 as 32 x 32 patches of 16 x 16 pixels.
_IMAGE_TOKENS = 1024

_SPOKEN = (
    "the of and to in is that for it as was with be by on not he his are this at from "
    "or have an they which one you were all her she there would their we him been has "
    "when who will no more if out so up said what its about than into them can only "
    "other time new some could these two may first then"
)
#: The words of a stand-in's output. With the space before it, each word is one token in
#: Tekken.
WORDS = tuple(f" {word}" for word in _SPOKEN.split())


class Tokenizer:
    """Counts tokens of texts and of conversations. Thread-safe."""

    def __init__(self) -> None:
        document = json.loads(_vocabulary_path().read_bytes())
        settings = document["config"]
        # The file has more entries than the model uses; only the first entries are
        # valid.
        size = settings["default_vocab_size"] - settings["default_num_special_tokens"]
        self._tekken = tiktoken.Encoding(
            "tekken",
            pat_str=settings["pattern"],
            mergeable_ranks={
                base64.b64decode(entry["token_bytes"]): entry["rank"]
                for entry in document["vocab"][:size]
            },
            special_tokens={},
        )

    def count(self, text: str) -> int:
        """Return the number of tokens of a text, without special tokens."""
        return len(self._tekken.encode_ordinary(text))

    def count_completion_prompt(self, prompt: str) -> int:
        """Return the number of tokens of a raw prompt, including the start token."""
        return 1 + self.count(prompt)

    def count_chat(
        self,
        messages: Sequence[Mapping[str, object]],
        tools: Sequence[Mapping[str, object]] = (),
    ) -> int:
        """Return the number of tokens of a conversation in Mistral's template.

        As in the instruct template, the system prompt is part of the last user message,
        and the tools precede that message. Unknown roles count as user messages.
        """
        system = "\n\n".join(
            _text(message)
            for message in messages
            if message.get("role") in ("system", "developer")
        )
        total = 1  # <s>
        if system:
            total += self.count(system + "\n\n")
        if tools:
            # [AVAILABLE_TOOLS] ... [/AVAILABLE_TOOLS]
            total += 2 + self.count(json.dumps(list(tools), ensure_ascii=False))
        return total + sum(self._count_message(message) for message in messages)

    def _count_message(self, message: Mapping[str, object]) -> int:
        match message.get("role"):
            case "system" | "developer":
                return 0
            case "assistant":
                total = self.count(_text(message)) + 1  # </s>
                if calls := message.get("tool_calls"):
                    total += 1 + self.count(json.dumps(calls, ensure_ascii=False))
                return total
            case _:
                # [INST] ... [/INST], or [TOOL_RESULTS] ... [/TOOL_RESULTS]
                return 2 + self.count(_text(message)) + _IMAGE_TOKENS * _images(message)


def _vocabulary_path() -> Path:
    """Return the file's path without importing mistral-common, which takes 0.5 s."""
    package = importlib.util.find_spec("mistral_common")
    if package is None or not package.submodule_search_locations:
        raise ModuleNotFoundError(
            "no package mistral_common; pip install 'token-budget-router[demo]'"
        )
    return Path(package.submodule_search_locations[0]) / _VOCABULARY


def _text(message: Mapping[str, object]) -> str:
    """Return the text of a message whose content is a string, parts or nothing."""
    content = message.get("content")
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        return ""
    texts = []
    for part in content:
        if isinstance(part, dict):
            text = part.get("text", part.get("content"))
            if isinstance(text, str):
                texts.append(text)
            elif isinstance(text, list):
                texts.append(_text({"content": text}))
    return "\n".join(texts)


def _images(message: Mapping[str, object]) -> int:
    content = message.get("content")
    if not isinstance(content, list):
        return 0
    kinds = ("image", "image_url", "input_image")
    return sum(
        1 for part in content if isinstance(part, dict) and part.get("type") in kinds
    )
