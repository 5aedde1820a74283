"""Generate ``extproc/wire`` from ``protos/``, or ``--check`` that it is current.

A proto's path below ``protos/extproc/`` matches its Python package, so that the
generated imports are correct. The public API's path matches its proto package instead,
as its users expect; protoc maps it to ``extproc/wire``.
"""

from __future__ import annotations

import argparse
import filecmp
import sys
import tempfile
from pathlib import Path

from grpc_tools import protoc

PROTOS = Path(__file__).parent
PROJECT = PROTOS.parent
API = PROTOS / "tokenbudget" / "v1"


def generate(target: Path) -> list[Path]:
    """Write the code of all protos below ``target``; return the files' paths."""
    sources = sorted(PROTOS.glob("extproc/**/*.proto")) + sorted(API.glob("*.proto"))
    (target / "extproc" / "wire").mkdir(parents=True, exist_ok=True)
    includes = [
        f"-Iextproc/wire={API}",
        f"-I{PROTOS}",
        f"-I{Path(protoc.__file__).parent / '_proto'}",
    ]
    outputs = [f"--python_out={target}", f"--pyi_out={target}"]
    if protoc.main(["protoc", *includes, *outputs, *map(str, sources)]) != 0:
        raise SystemExit("protoc failed")
    return sorted((target / "extproc" / "wire").glob("*_pb2.py*"))


def main() -> int:
    """Generate the code, or compare it with the existing code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="only compare")
    if not parser.parse_args().check:
        generate(PROJECT)
        return 0
    with tempfile.TemporaryDirectory() as directory:
        stale = [
            path.name
            for path in generate(Path(directory))
            if not _same(path, PROJECT / path.relative_to(directory))
        ]
    if stale:
        print(f"run `make generate`: {', '.join(stale)} not current", file=sys.stderr)
        return 1
    print("extproc/wire is current")
    return 0


def _same(fresh: Path, kept: Path) -> bool:
    return kept.exists() and filecmp.cmp(fresh, kept, shallow=False)


if __name__ == "__main__":
    raise SystemExit(main())
