"""Bodies of simulated requests, with bytes per token that vary as in real text.

The simulated router is the shipped one, which reads bytes. So a request with a given
number of tokens gets text of its kind. The length of the text is this number times the
kind's mean bytes per token and a log-normal factor, plus the chat template. The text is
filler with the right character classes. Its features do not explain the factor, so the
results of estimators that use features are pessimistic.

Means and coefficients of variation are for bytes of decoded message text per Llama 3
token, measured on 3,249 chat, code, tool and multilingual requests. The variation is
that of requests of 2 kB or more, for which it matters.
"""

import math
from dataclasses import dataclass

import numpy as np

from extproc.routing.request import Prompt, Request

#: Number of tokens of the chat template around one user message (Llama 3: 10).
TEMPLATE_TOKENS = 10
#: Bytes of JSON around one user message, and bytes of escapes and quotes per byte of
#: text.
ENVELOPE_BYTES = 139
ESCAPED_SHARE = 0.05
_LONGEST = 1 << 20


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of text."""

    bytes_per_token: float
    """Mean bytes of decoded text per token, over requests."""
    variation: float
    """Coefficient of variation of bytes per token between requests."""
    filler: bytes
    """UTF-8 text of this kind."""


def _repeated(text: str) -> bytes:
    encoded = text.encode()
    return encoded * (_LONGEST // len(encoded) + 1)


KINDS = {
    "prose": Kind(
        4.52,
        0.10,
        _repeated(
            "The harbour lay quiet in the morning, and the boats that had come in "
            "overnight were still unloading. Nobody hurried. A clerk walked along the "
            "quay with a list, asked each captain the same three questions, and wrote "
            "down whatever he was told; the gulls, as ever, had opinions of their own. "
        ),
    ),
    "code": Kind(
        4.05,
        0.10,
        _repeated(
            "def merge(left, right):\n    result = []\n    i = j = 0\n"
            "    while i < len(left) and j < len(right):\n"
            "        if left[i] <= right[j]:\n            result.append(left[i])\n"
            "            i += 1\n        else:\n            result.append(right[j])\n"
            "            j += 1\n    return result + left[i:] + right[j:]\n\n"
        ),
    ),
    "cjk": Kind(
        3.82,
        0.12,
        _repeated(
            "港口的早晨很安静，昨夜进港的船还在卸货，没有人着急。"
            "朝の港は静かで、船はまだ荷を下ろしている。"
            "항구의 아침은 조용하고 배들은 아직 짐을 내리고 있다。"
        ),
    ),
    "structured": Kind(
        4.23,
        0.12,
        _repeated(
            '{"id": "order-1042", "status": "packed", "items": [{"sku": "A-77", '
            '"quantity": 3, "price": 12.5}, {"sku": "C-03", "quantity": 1, "price": '
            '99.0}], "customer": {"country": "NL", "verified": true}}\n'
        ),
    ),
}


class Bodies:
    """A generator of bodies for a mix of kinds.

    Args:
        mix: share of requests of each of :data:`KINDS`.
        rng: the only source of randomness.
        variation_factor: factor on every kind's variation. With 0, bytes per token are
            constant; factors above 1 are for the sensitivity analysis.
    """

    def __init__(
        self,
        mix: dict[str, float],
        rng: np.random.Generator,
        variation_factor: float = 1.0,
    ) -> None:
        unknown = set(mix) - set(KINDS)
        if unknown:
            raise ValueError(
                f"mix: {', '.join(sorted(unknown))}; expected {', '.join(KINDS)}"
            )
        self._kinds = [KINDS[name] for name in mix]
        shares = np.array(list(mix.values()))
        self._shares = shares / shares.sum()
        self._rng = rng
        self._variation_factor = variation_factor
        self._drawn: list[tuple[Kind, float]] = []

    def draw(self, prompt_tokens: int, max_tokens: int | None) -> Request:
        """Return a client's request, parsed, whose prompt has this length."""
        if not self._drawn:
            self._refill()
        kind, normal = self._drawn.pop()
        spread = math.sqrt(math.log1p((kind.variation * self._variation_factor) ** 2))
        bytes_per_token = kind.bytes_per_token * math.exp(
            spread * normal - spread * spread / 2
        )
        text_tokens = max(1, prompt_tokens - TEMPLATE_TOKENS)
        text_bytes = min(_LONGEST, max(1, round(text_tokens * bytes_per_token)))
        return Request(
            Prompt(kind.filler[:text_bytes]),
            body_bytes=ENVELOPE_BYTES + round(text_bytes * (1 + ESCAPED_SHARE)),
            model="simulated",
            max_tokens=max_tokens,
        )

    def _refill(self, n: int = 4096) -> None:
        picked = self._rng.choice(len(self._kinds), size=n, p=self._shares)
        normals = self._rng.standard_normal(n)
        self._drawn = [
            (self._kinds[index], normal)
            for index, normal in zip(picked.tolist(), normals.tolist(), strict=True)
        ]
