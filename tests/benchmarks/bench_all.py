"""Measure the server's full cost, as tables and a chart, in ten minutes.

    python tests/benchmarks/bench_all.py [--seconds 3] [--only sizes,neighbours]

The program writes ``results.md`` and ``results.svg`` to this file's folder. ``rig.py``
describes the method. All processes share two cores, so a row shows the work of a whole
machine.
"""

from __future__ import annotations

import argparse
import os
import platform
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from rig import (
    BARE,
    GRPCIO,
    LEAN,
    NATIVE,
    Load,
    Scenario,
    Stack,
    chat,
    quantile_ms,
    running,
)

from extproc.fleet.charts import Axis, Chart, Series

HERE = Path(__file__).parent
TRANSPORTS = (GRPCIO, NATIVE)
LARGE = (("server.max_body_bytes", str(32 << 20)), ("feedback.sample", "0"))
KIB, MIB = 1 << 10, 1 << 20
SIZES = (1 * KIB, 4 * KIB, 16 * KIB, 64 * KIB, 220_000, 1 * MIB, 4 * MIB, 16 * MIB)
CONNECTIONS = (1, 4, 16, 64, 256)
COLOURS = {GRPCIO: "b", NATIVE: "a", LEAN: "c"}
COSTS = ("req/s", "server CPU us", "Envoy CPU us")
ADDED = ("added p50 ms", "added p99 ms")
Lines = dict[str, list[tuple[float, float]]]


@dataclass
class Table:
    title: str
    note: str
    head: Sequence[str]
    rows: list[list[str]] = field(default_factory=list)

    def add(self, *cells: object) -> None:
        row = [f"{c:.3g}" if isinstance(c, float) else str(c) for c in cells]
        self.rows.append(row)
        print("  ", *row, flush=True)

    def markdown(self) -> str:
        lines = [f"## {self.title}", "", self.note, ""]
        lines += ["| " + " | ".join(self.head) + " |"]
        lines += ["|" + "---|" * len(self.head)]
        lines += ["| " + " | ".join(row) + " |" for row in self.rows]
        return "\n".join(lines) + "\n"


@dataclass
class Results:
    seconds: int
    tables: list[Table] = field(default_factory=list)
    charts: list[Chart] = field(default_factory=list)

    def table(self, title: str, note: str, *head: str) -> Table:
        print(f"\n{title}\n  ", *head, flush=True)
        self.tables.append(Table(title, note, head))
        return self.tables[-1]

    def measured(self, stack: Stack, body: str, connections: int) -> Load:
        stack.warm(body, connections)
        return stack.load(body, connections, self.seconds)

    def draw(self, x: Axis, y: str, lines: Lines, least: float = 0) -> None:
        """Draw a line per server; if ``least`` is above 0, the logarithmic y axis
        starts there.
        """
        top = max(value for points in lines.values() for _, value in points)
        chart = Chart(x, Axis(y, least, top * 1.1, log=least > 0))
        for name, points in lines.items():
            chart.add(Series(name, points, COLOURS[name]))
        self.charts.append(chart)


def us(value: float) -> str:
    return f"{value:.0f}"


def costs_of(load: Load) -> tuple[str, ...]:
    return us(load.rps), us(load.server_us), us(load.envoy_us)


def added(load: Load, bare: Load) -> tuple[float, float]:
    """Return the increases of P50 and P99 latency that a server causes."""
    return load.p50_ms - bare.p50_ms, load.p99_ms - bare.p99_ms


def by_size(results: Results) -> None:
    table = results.table(
        "By body size",
        "Four connections, or one for bodies of 4 MiB and more. Latency is measured "
        "with one connection, minus that of Envoy alone. Plain prose in one message; "
        "`max_body_bytes` is 32 MiB; the router observes no response.",
        *("body", "server", *COSTS, *ADDED),
    )
    found: dict[tuple[str, int], tuple[Load, Load]] = {}
    for server in (BARE, *TRANSPORTS):
        with running(Scenario(server, LARGE)) as stack:
            for size in SIZES:
                busy = results.measured(stack, chat(size), 4 if size < 4 * MIB else 1)
                found[server, size] = busy, stack.load(chat(size), 1, results.seconds)
    for size in SIZES:
        bare = found[BARE, size][1]
        for server in (BARE, *TRANSPORTS):
            busy, alone = found[server, size]
            table.add(
                f"{size // KIB} KiB", server, *costs_of(busy), *added(alone, bare)
            )
    costs = {
        s: [(n / KIB, found[s, n][0].server_us) for n in SIZES] for s in TRANSPORTS
    }
    body = Axis("body KiB", 1, 16 * KIB, log=True)
    results.draw(body, "server CPU us a request", costs, least=64)


def by_connections(results: Results) -> None:
    table = results.table(
        "By connections",
        "4 kB bodies; latency minus that of Envoy alone. With a fast server behind one "
        "Envoy worker, requests queue in Envoy.",
        *("connections", "server", *COSTS, *ADDED),
    )
    found: dict[tuple[str, int], Load] = {}
    servers = (BARE, LEAN, *TRANSPORTS)
    for server in servers:
        with running(Scenario(server)) as stack:
            for connections in CONNECTIONS:
                load = results.measured(stack, chat(4000), connections)
                found[server, connections] = load
    for connections in CONNECTIONS:
        bare = found[BARE, connections]
        for server in servers:
            load = found[server, connections]
            table.add(connections, server, *costs_of(load), *added(load, bare))
    rates: dict[str, list[tuple[float, float]]]
    rates = {s: [(c, found[s, c].rps) for c in CONNECTIONS] for s in servers[1:]}
    results.draw(Axis("connections", 1, 256, log=True), "req/s", rates)


def by_workers(results: Results) -> None:
    table = results.table(
        "By workers",
        "4 kB bodies, 64 connections. The router, Envoy's one worker and wrk share the "
        "machine's cores; CPU of each process is a share of one core.",
        "transport", "workers", "req/s", "server CPU us", "each worker", "Envoy", "wrk",
    )  # fmt: skip
    for server in TRANSPORTS:
        for workers in (1, 2):
            with running(Scenario(server, workers=workers)) as stack:
                stack.warm(chat(4000), 64)
                before = stack.worker_cpu_s()
                load = stack.load(chat(4000), 64, results.seconds)
                spent = [
                    late - early
                    for late, early in zip(stack.worker_cpu_s(), before, strict=True)
                ]
            # With several workers, the parent process only supervises.
            shares = [cpu / load.seconds for cpu in spent[workers > 1 :]]
            table.add(
                server, workers, us(load.rps), us(load.server_us),
                " + ".join(f"{share:.2f}" for share in shares),
                load.envoy_us * load.rps / 1e6, load.load_us * load.rps / 1e6,
            )  # fmt: skip


def by_answer(results: Results) -> None:
    table = results.table(
        "Observed JSON responses and streams",
        "4 kB bodies, 16 connections. `auto` is the default: the router observes every "
        "response until it knows a model and category, then a small sample. With `0` "
        "it observes none, with `all` every response. A stream has 64 events, one each "
        "millisecond, so the backend limits its rate.",
        *("answer", "sample", "server", *COSTS, "messages a request"),
    )
    for backend, answer in ((False, "JSON"), (True, "SSE")):
        body = chat(4000, stream=backend, stream_options={"include_usage": True})
        for sample in ("0", '"auto"', '"all"'):
            for server in TRANSPORTS:
                config = (("feedback.sample", sample),)
                with running(Scenario(server, config, backend=backend)) as stack:
                    stack.warm(body, 16, 5)  # until the router has learned the model
                    load = stack.load(body, 16, results.seconds)
                name = sample.strip('"')
                messages = f"{load.messages:.2f}"
                table.add(answer, name, server, *costs_of(load), messages)


def empty_messages(count: int) -> str:
    """Return a body that contains only array elements, which is the known worst case."""
    return '{"messages":[' + "{}," * count + "{}]}"


NEIGHBOURS = {
    "nobody": "",
    "1 MiB of prose": chat(MIB),
    "1 MiB of escapes": chat(MIB // 6, sentence="é"),
    "1 MiB of empty messages": empty_messages(MIB // 3),
    "16 MiB of prose": chat(16 * MIB),
}  # fmt: skip


def beside_neighbours(results: Results) -> None:
    table = results.table(
        "Small requests beside large ones",
        "4 kB bodies over two connections, while a third connection sends large bodies "
        "without a pause. The rows without a router (`bare`) show the effect of Envoy "
        "and of the shared cores; `added` is the latency beyond that.",
        "neighbour", "server", "small req/s", "p50 ms", "p99 ms", "added p99 ms", "large req/s",
    )  # fmt: skip
    found: dict[tuple[str, str], tuple[float, float, float, float]] = {}
    for server in (BARE, *TRANSPORTS):
        with running(Scenario(server, LARGE)) as stack:
            for neighbour, body in NEIGHBOURS.items():
                found[neighbour, server] = mixed(stack, body, results.seconds)
    for neighbour in NEIGHBOURS:
        for server in (BARE, *TRANSPORTS):
            rate, p50, p99, large = found[neighbour, server]
            added = p99 - found[neighbour, BARE][2]
            table.add(neighbour, server, us(rate), p50, p99, added, us(large))


def mixed(
    stack: Stack, neighbour: str, seconds: int
) -> tuple[float, float, float, float]:
    """Return the rate of small requests, their P50 and P99, and the rate of large
    requests, with both rates per second.
    """
    stack.warm(chat(4000), 2)
    large = stack.start_load(neighbour, 1, seconds + 1) if neighbour else None
    if large is not None:
        time.sleep(0.5)
    small = stack.start_load(chat(4000), 2, seconds)
    out = small.finish()
    rate = 0.0
    if large is not None:
        large.finish()
        rate = large.requests / (seconds + 1)
    return small.requests / seconds, quantile_ms(out, 50), quantile_ms(out, 99), rate


STYLE = """<style>
svg { --a: #0a7d55; --b: #c2410c; --c: #5b6b7f; --line: #d8dde3; --muted: #8a94a0;
  --text: #1f2933; font: 12px system-ui, sans-serif; fill: #1f2933; }
@media (prefers-color-scheme: dark) { svg { --a: #34d399; --b: #fb923c; --c: #9fb0c3;
  --line: #39424e; --muted: #7b8794; --text: #e4e7eb; fill: #e4e7eb; } }
</style>"""


def svg(charts: Sequence[Chart]) -> str:
    width, height = 520, 320
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width * len(charts)}" '
        f'height="{height}">',
        STYLE,
    ]
    for place, chart in enumerate(charts):
        at = f'x="{place * width}" width="{width}" height="{height}"'
        parts.append(chart.svg().replace("<svg ", f"<svg {at} ", 1))
    return "\n".join([*parts, "</svg>\n"])


PARTS: dict[str, Callable[[Results], None]] = {
    "sizes": by_size,
    "neighbours": beside_neighbours,
    "connections": by_connections,
    "workers": by_workers,
    "answers": by_answer,
}


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=int, default=3)
    parser.add_argument(
        "--only", default=",".join(PARTS), help="of the parts, by comma"
    )
    parser.add_argument("--output", type=Path, default=HERE / "results.md")
    args = parser.parse_args()
    if shutil.which("wrk") is None:
        print("wrk is not installed (Debian: apt-get install wrk)", file=sys.stderr)
        return 2
    results = Results(args.seconds)
    began = time.monotonic()
    load_before = os.getloadavg()[0]
    for name in args.only.split(","):
        PARTS[name](results)
    minutes = (time.monotonic() - began) / 60
    about = (
        f"# Benchmark results\n\n`python tests/benchmarks/bench_all.py --seconds "
        f"{args.seconds:g}` wrote this file in {minutes:.0f} minutes on {os.cpu_count()} "
        f"cores ({platform.machine()}, Python {platform.python_version()}); load average "
        f"before: {load_before:.1f}. Compare only ratios within a table.\n\n![By body size and by "
        f"connections]({args.output.with_suffix('.svg').name})\n"
    )
    tables = [table.markdown() for table in results.tables]
    args.output.write_text("\n".join([about, *tables]))
    if results.charts:
        args.output.with_suffix(".svg").write_text(svg(results.charts))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
