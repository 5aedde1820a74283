"""Run the ext_proc server until SIGTERM or SIGINT.

Without a file, it uses the defaults: pools short (8,192) and long (65,536), gRPC on
0.0.0.0:9002, admin on 127.0.0.1:9090. The environment overrides the file:
EXTPROC_LISTEN, EXTPROC_ADMIN, EXTPROC_TRANSPORT, EXTPROC_WORKERS, EXTPROC_LOG_LEVEL.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
from pathlib import Path

from extproc.commands.check_config import read_config
from extproc.config import Config, ConfigError
from extproc.server.app import App
from extproc.server.logs import configure_logging
from extproc.server.memory import keep_freed_memory
from extproc.server.transport.choose import loop_factory
from extproc.server.workers.supervisor import Supervisor
from extproc.server.workers.worker import Worker


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument(
        "--config", type=Path, metavar="FILE", help="configuration of the router"
    )
    # The supervisor of `server.workers` uses this option to start each worker.
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)


def run(args: argparse.Namespace) -> int:
    """Serve. Return 2 if the configuration is invalid, 1 if the address is in use."""
    config = read_config(args.config)
    if config is None:
        return 2
    configure_logging(config.log)
    worker = None if args.worker is None else Worker.at(args.worker)
    if worker is None and config.server.workers > 1:
        return asyncio.run(_supervise(config, args.config))
    keep_freed_memory(config.server.max_body_bytes)
    try:
        with asyncio.Runner(loop_factory=loop_factory(config.server)) as runner:
            runner.run(App(config, args.config, worker).run())
    except ConfigError as error:
        print(f"extproc: {args.config}: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"extproc: server.listen: {error}", file=sys.stderr)
        return 1
    return 0


async def _supervise(config: Config, path: Path | None) -> int:
    return await Supervisor(config, path).run()
