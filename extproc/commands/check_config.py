"""Print the configuration in force as YAML, or the line that says why there is none.

The environment overrides the file: EXTPROC_LISTEN, EXTPROC_ADMIN,
EXTPROC_TRANSPORT, EXTPROC_WORKERS, EXTPROC_LOG_LEVEL.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import yaml

from extproc.config import Config, ConfigError, as_document, load_config


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument(
        "file",
        type=Path,
        nargs="?",
        help="configuration file; without one, print the defaults",
    )


def run(args: argparse.Namespace) -> int:
    """Print the configuration in force. Return 2 if the file is invalid."""
    config = read_config(args.file)
    if config is None:
        return 2
    missing = list(missing_files(config))
    for line in missing:
        print(f"extproc: {args.file}: {line}", file=sys.stderr)
    if missing:
        return 2
    yaml.safe_dump(as_document(config), sys.stdout, sort_keys=False)
    return 0


def missing_files(config: Config) -> Iterator[str]:
    """Yield a line for each file or folder that the server would not find."""
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
            yield f"{key}: {name!r}; expected a file that can be read"
    made = {"recording.file": config.recording.file, "state.path": config.state.path}
    for key, name in made.items():
        if name is not None and not Path(name).resolve().parent.is_dir():
            yield f"{key}: {name!r}; expected a folder that exists around it"


def read_config(path: Path | None) -> Config | None:
    """Load a file and the environment; on a mistake, say so on stderr."""
    try:
        text = "" if path is None else path.read_text(encoding="utf-8")
        return load_config(text, os.environ)
    except (OSError, UnicodeError, ConfigError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        where = "configuration" if path is None else path
        print(f"extproc: {where}: {reason}", file=sys.stderr)
        return None
