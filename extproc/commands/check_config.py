"""Print the configuration in force as YAML, or the line that says why there is none.

The environment overrides the file: EXTPROC_LISTEN, EXTPROC_ADMIN,
EXTPROC_TRANSPORT, EXTPROC_WORKERS, EXTPROC_LOG_LEVEL.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

import yaml

from extproc.config import Config, ConfigError, as_document, load_config


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("file", type=Path, nargs="?", help="none: the defaults")


def run(args: argparse.Namespace) -> int:
    """Print, or exit with status 2."""
    config = read_config(args.file)
    if config is None:
        return 2
    yaml.safe_dump(as_document(config), sys.stdout, sort_keys=False)
    return 0


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
