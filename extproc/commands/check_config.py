"""Print the configuration in force as YAML, or the first error in it.

The environment overrides the file: EXTPROC_LISTEN, EXTPROC_ADMIN, EXTPROC_TRANSPORT,
EXTPROC_WORKERS, EXTPROC_LOG_LEVEL.

With --online, query the servers of each pool and print a line for each: its state, its
models, and its max_model_len compared with the pool's. Exit status: 1 if a server does
not respond or differs from its pool, 2 for an invalid configuration.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import yaml

from extproc.config import Config, ConfigError, as_document, load_config
from extproc.server.pools.survey import render, survey


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument(
        "file",
        type=Path,
        nargs="?",
        help="configuration file; without one, print the defaults",
    )
    parser.add_argument(
        "--online", action="store_true", help="compare the pools' servers with it"
    )


def run(args: argparse.Namespace) -> int:
    """Print the configuration in force, or the state of its servers.

    Return 2 if the file is invalid, and 1 if a server differs from the file.
    """
    config = read_config(args.file)
    if config is None:
        return 2
    missing = list(missing_files(config))
    for line in missing:
        print(f"extproc: {args.file}: {line}", file=sys.stderr)
    if missing:
        return 2
    if args.online:
        return _ask_servers(config)
    yaml.safe_dump(as_document(config), sys.stdout, sort_keys=False)
    return 0


def _ask_servers(config: Config) -> int:
    findings = asyncio.run(survey(config))
    for line in render(findings):
        print(line)
    return 1 if any(finding.faults for finding in findings) else 0


def missing_files(config: Config) -> Iterator[str]:
    """Yield an error for each file or folder that the server needs but cannot find."""
    tls = config.server.tls
    needed = {
        f"{path}pools[{position}].api_key_file": pool.api_key_file
        for path, pools in (
            ("", config.pools),
            *((f"models.{name}.", each.pools) for name, each in config.models.items()),
        )
        for position, pool in enumerate(pools)
    }
    if tls is not None:
        needed["server.tls.cert_file"] = tls.cert_file
        needed["server.tls.key_file"] = tls.key_file
        needed["server.tls.client_ca_file"] = tls.client_ca_file
    for key, name in needed.items():
        if name is not None and not os.access(name, os.R_OK):
            yield f"{key}: {name!r}; expected a readable file"
    made = {"recording.file": config.recording.file, "state.path": config.state.path}
    for key, name in made.items():
        if name is not None and not Path(name).resolve().parent.is_dir():
            yield f"{key}: {name!r}; expected a path in an existing folder"


def read_config(path: Path | None) -> Config | None:
    """Load a file and the environment; print any error to stderr."""
    try:
        text = "" if path is None else path.read_text(encoding="utf-8")
        return load_config(text, os.environ)
    except (OSError, UnicodeError, ConfigError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        where = "configuration" if path is None else path
        print(f"extproc: {where}: {reason}", file=sys.stderr)
        return None
