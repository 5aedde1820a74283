"""Measure the server behind a real Envoy: CPU per request, throughput and latency.

    python tests/benchmarks/bench_envoy.py [--seconds 5] [--rounds 3] [--body-bytes 4000]

wrk (Debian package wrk) sends chat requests over 16 connections to measure CPU and
throughput, and over one connection to measure latency. Each round runs a bare Envoy, a
grpc.aio server with an empty handler, and ``extproc serve`` on both transports in turn.
The program prints medians; on a busy machine compare the ratios. ``bench_all.py``
prints more tables, and ``--profile FILE.svg`` shows the native transport's use of CPU.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import sys
from pathlib import Path

from rig import BARE, GRPCIO, LEAN, NATIVE, Scenario, chat, running

SERVERS = (BARE, LEAN, GRPCIO, NATIVE)


def measure(server: str, args: argparse.Namespace) -> dict[str, float]:
    config = (("server.max_body_bytes", str(32 << 20)),)
    with running(Scenario(server, config), args.body_bytes) as stack:
        body = chat(args.body_bytes)
        stack.warm(body, 16)
        stack.warm(body, 16)
        busy = stack.load(body, 16, args.seconds)
        alone = stack.load(body, 1, args.seconds)
    return {
        "cpu_us": busy.server_us,
        "envoy_us": busy.envoy_us,
        "rps": busy.rps,
        "p50_ms": alone.p50_ms,
        "p99_ms": alone.p99_ms,
    }


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--body-bytes", type=int, default=4000)
    parser.add_argument(
        "--profile",
        type=Path,
        metavar="SVG",
        help="draw a flame graph (py-spy), no table",
    )
    args = parser.parse_args()
    if shutil.which("wrk") is None:
        print("wrk is not installed (Debian: apt-get install wrk)", file=sys.stderr)
        return 2
    if args.profile:
        with running(Scenario(NATIVE), args.body_bytes) as stack:
            stack.warm(chat(args.body_bytes), 16, 3)
            stack.profile(chat(args.body_bytes), args.seconds, args.profile)
        return 0
    rounds = [{s: measure(s, args) for s in SERVERS} for _ in range(args.rounds)]
    rows = {
        s: {k: statistics.median(r[s][k] for r in rounds) for k in rounds[0][s]}
        for s in SERVERS
    }
    print(
        f"{'server':<14} {'CPU us':>8} {'/ grpcio':>9} {'Envoy us':>9} {'req/s':>8} "
        f"{'added p50, p99 ms':>18}"
    )
    for name, row in rows.items():
        ratio = row["cpu_us"] / rows[GRPCIO]["cpu_us"]
        added = [row[k] - rows[BARE][k] for k in ("p50_ms", "p99_ms")]
        print(
            f"{name:<14} {row['cpu_us']:>8.0f} {ratio:>9.2f} {row['envoy_us']:>9.0f} "
            f"{row['rps']:>8.0f} {added[0]:>9.2f} {added[1]:>8.2f}"
        )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
