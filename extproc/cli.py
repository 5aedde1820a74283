"""The ``extproc`` command: parses arguments and calls one module of ``commands``.

Exit status: 0 success, 1 the work failed, 2 bad arguments or configuration.
"""

from __future__ import annotations

import argparse
import difflib
import importlib
import os
import sys
from collections.abc import Sequence
from typing import NoReturn

import extproc
from extproc.commands.text import READERS, one_of, wrap

# Must be set before numpy is loaded. The matrices here have about a hundred rows, for
# which multithreading takes ten times as long (measured: 2 ms instead of 0.2 ms per
# sample).
for _library in ("OPENBLAS", "OMP", "MKL"):
    os.environ.setdefault(f"{_library}_NUM_THREADS", "1")

#: One-line descriptions by command name. The module of the same name (with ``_`` for
#: ``-``) has ``add_arguments(parser)`` and ``run(args) -> int``.
COMMANDS = {
    "serve": "run the ext_proc server",
    "check-config": "check a configuration and print what is in force",
    "demo": "run Envoy, the router and two pools on this machine",
    "explain": "explain the routing decision for one request",
    "routes": "print the routes and clusters that a gateway needs",
    "replay": "score a log of requests, or a recording, with the live code",
    "plan": "size a fleet with and without the split",
    "simulate": "simulate one fleet in detail",
    "profile": "measure a live vLLM server and write a hardware profile",
    "completion": "print shell completion for bash, zsh or fish",
}

_EXTRA_OF_MODULE = {
    "mistral_common": "demo",
    "opentelemetry": "otel",
    "redis": "redis",
    "tiktoken": "demo",
}
"""The package extra that installs each optional module, by module name."""

_EXAMPLES = """\
examples:
  extproc demo                                   run everything on this machine
  extproc check-config extproc.yaml              check a configuration
  extproc serve --config extproc.yaml            serve Envoy's ext_proc filter
  extproc explain request.json                   explain one decision
  extproc explain --server http://127.0.0.1:9090 request.json
  extproc replay log.jsonl --pool-threshold 4096 score a log
  extproc plan --workload azure-conv --rate 100  size a fleet
  source <(extproc completion bash)

extproc COMMAND --help has the details. Exit status: 0 success, 1 failure,
2 bad arguments or configuration."""


class _Parser(argparse.ArgumentParser):
    """Argument parser that prints errors in one line, without the long usage."""

    def error(self, message: str) -> NoReturn:
        reason = message.removeprefix("argument ")
        self.exit(2, f"{self.prog}: {reason}; see {self.prog} --help\n")


class _Version(argparse.Action):
    """Prints the version and the name of the code that counts text features."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        from extproc.routing.arithmetic import COUNTED_BY  # slow, since it loads NumPy

        print(f"extproc {extproc.__version__} ({COUNTED_BY})")
        parser.exit()


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if arguments and not _is_known(arguments[0]):
        return 2
    parser = argparse.ArgumentParser(
        prog="extproc",
        description=extproc.__doc__,
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action=_Version, nargs=0, help="print the version")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, description in COMMANDS.items():
        command = commands.add_parser(name, help=description, add_help=False)
        command.set_defaults(command=name)
    chosen, rest = parser.parse_known_args(arguments[:1])
    try:
        status = _run(chosen.command, [*rest, *arguments[1:]])
        sys.stdout.flush()
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # The reader has closed the pipe, so discard the output that Python flushes at
        # exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except ModuleNotFoundError as error:
        extra = _EXTRA_OF_MODULE.get((error.name or "").partition(".")[0])
        if extra is None:
            raise
        print(
            f"extproc {chosen.command}: {error.name} is not installed; "
            f"pip install 'token-budget-router[{extra}]'",
            file=sys.stderr,
        )
        return 1
    return status


def _run(name: str, arguments: Sequence[str]) -> int:
    """Import a command's module, parse its arguments and run it.

    Only the chosen command is imported, so that ``extproc --help`` is quick and
    ``extproc serve`` never loads the demo or the simulator.
    """
    module = importlib.import_module(f"extproc.commands.{name.replace('-', '_')}")
    parser = _Parser(
        prog=f"extproc {name}",
        description=wrap(module.__doc__ or ""),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    module.add_arguments(parser)
    for action in parser._actions:
        if action.choices is not None and action.type is None:
            action.type = one_of(action.choices)
        elif action.type in READERS:
            action.type = READERS[action.type]
    status: int = module.run(parser.parse_args(arguments))
    return status


def _is_known(argument: str) -> bool:
    if argument in COMMANDS or argument.startswith("-"):
        return True
    near = difflib.get_close_matches(argument, COMMANDS, 1)
    advice = f"did you mean {near[0]!r}?" if near else f"expected {', '.join(COMMANDS)}"
    print(f"extproc: no command {argument!r}; {advice}", file=sys.stderr)
    return False
