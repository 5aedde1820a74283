"""Savings and truncations if the router reserves less than the limits clients declare.

    python tests/benchmarks/declared_limits.py WORKLOAD... [--limit N] [--window N]

WORKLOAD is the same as for ``extproc simulate --workload``: a name, or a file with the
tokens of prompts and outputs. Traces do not contain declared limits, so every client
declares LIMIT, and longer outputs are truncated at LIMIT. The number of prompt tokens
is taken as known exactly, to isolate the effect of the output. The live allowance and
policy decide each request and then learn from it. The first tenth is not scored.

The program prints three shares for each workload and risk: the share of requests that
fit WINDOW; the share of these requests that were sent to the long pool; and the share
of all answers that WINDOW truncated although the client allowed more. With risk 0 the
full declared limit is reserved.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from extproc.commands.traffic_options import read_workload
from extproc.fleet.workload import Recorded, Workload
from extproc.routing.declared_allowance import TRUNCATION_RISK, DeclaredAllowance
from extproc.routing.policy import Policy, Pool

DRAWN = 20_000
LIMIT, WINDOW = 32_000, 8192
RISKS = (0.0, 0.001, TRUNCATION_RISK, 0.01, 0.05)


@dataclass
class Scores:
    """Shares of the scored requests."""

    scored: int = 0
    fits: int = 0
    needless: int = 0
    cut: int = 0


def read_pairs(name: str) -> list[tuple[int, int]]:
    """Return pairs of prompt and output tokens, read from a file or drawn from a table."""
    workload: Workload = read_workload(name)
    lengths = workload.lengths
    if isinstance(lengths, Recorded):
        prompts, outputs = lengths.prompts, lengths.outputs
    else:
        prompts, outputs = lengths.draw(np.random.default_rng(1), DRAWN)
    return list(zip(prompts.tolist(), outputs.tolist(), strict=True))


def replay(
    pairs: Sequence[tuple[int, int]], risk: float, limit: int, window: int
) -> Scores:
    """Decide each request and then learn from it."""
    allowance = DeclaredAllowance(risk)
    short = Pool("short", window, window)
    policy = Policy([short, Pool("long", 1 << 20, 1 << 20)])
    scores = Scores()
    for n, (prompt, output) in enumerate(pairs):
        needed = min(output, limit)
        reserved = allowance.reserve("m", "prose", limit)
        is_short = policy.choose(prompt + reserved).pool == short
        room = window - prompt if is_short else needed
        cut = needed > room
        if n >= len(pairs) // 10:
            fits = prompt + needed <= window
            scores.scored += 1
            scores.fits += fits
            scores.needless += fits and not is_short
            scores.cut += cut
        answered = min(needed, room)
        allowance.observe(
            "m",
            "prose",
            limit,
            answered,
            truncated=cut or answered == limit,
            reserved_tokens=reserved,
        )
    return scores


def main() -> None:
    """Measure all cases and print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("workload", nargs="+", metavar="WORKLOAD")
    parser.add_argument("--limit", type=int, default=LIMIT, metavar="TOKENS")
    parser.add_argument("--window", type=int, default=WINDOW, metavar="TOKENS")
    args = parser.parse_args()
    print("| workload | requests | fit % |" + "".join(
        f" long, cut at {100 * risk:g} % |" for risk in RISKS
    ))  # fmt: skip
    print("|---" * (3 + len(RISKS)) + "|")
    for name in args.workload:
        pairs = read_pairs(name)
        cells = []
        fit = 0.0
        for risk in RISKS:
            scores = replay(pairs, risk, args.limit, args.window)
            fit = 100 * scores.fits / scores.scored
            needless = 100 * scores.needless / max(1, scores.fits)
            cells.append(f" {needless:.1f}, {100 * scores.cut / scores.scored:.3f} |")
        print(f"| {name} | {len(pairs)} | {fit:.1f} |" + "".join(cells), flush=True)


if __name__ == "__main__":
    main()
