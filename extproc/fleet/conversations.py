"""A synthetic hour of growing conversations, since no large public trace has any.

The parameters are assumptions, not measurements: conversations start at random times,
have five turns on average, and pause for a minute on average between turns. Most turns
have a few hundred tokens, and one turn in eight adds a document of a few thousand
tokens.
"""

import numpy as np

from extproc.fleet.workload import WORKLOADS, Recorded, Workload

CONVERSATIONS = "conversations"
WORKLOAD_NAMES = (*WORKLOADS, CONVERSATIONS)

_SEED = 20_260
_HOUR_S = 3600.0
_CONVERSATIONS = 1800
_MEAN_TURNS = 5
_MEAN_PAUSE_S = 60.0
#: Seconds that a user needs to read one token of an answer (20 tokens a second).
_TOKEN_S = 0.05
_DOCUMENT_SHARE = 0.125
#: Median and sigma of log-normal token counts.
_OPENING = (700, 0.8)
_QUESTION = (120, 1.0)
_DOCUMENT = (4000, 0.8)
_ANSWER = (250, 0.8)
_MOST_TOKENS = 60_000


def conversations() -> Workload:
    """Return the same hour in every call, with about 2 requests a second."""
    rng = np.random.default_rng(_SEED)

    def tokens(median: int, sigma: float) -> int:
        return max(1, int(rng.lognormal(np.log(median), sigma)))

    turns: list[tuple[float, int, int, str]] = []
    for number in range(_CONVERSATIONS):
        # Some conversations start before the hour, so that the load is even over the
        # hour.
        at_s = (rng.random() * 1.25 - 0.25) * _HOUR_S
        said = tokens(*_OPENING)
        for _ in range(int(rng.geometric(1 / _MEAN_TURNS))):
            kind = _DOCUMENT if rng.random() < _DOCUMENT_SHARE else _QUESTION
            said += tokens(*kind)
            answer = tokens(*_ANSWER)
            if said + answer > _MOST_TOKENS or at_s >= _HOUR_S:
                break
            if at_s >= 0:
                turns.append((at_s, said, answer, f"c{number}"))
            said += answer
            at_s += answer * _TOKEN_S + rng.exponential(_MEAN_PAUSE_S)
    turns.sort()
    instants, prompts, outputs, sessions = zip(*turns, strict=True)
    return Workload(
        CONVERSATIONS,
        Recorded(np.array(prompts), np.array(outputs)),
        f"synthetic conversations, {len(turns):,} turns in an hour",
        synthetic=True,
        mix={"prose": 0.75, "code": 0.25},
        arrivals=np.array(instants) - instants[0],
        sessions=tuple(sessions),
    )
