"""Fuzz one target with atheris, guided by code coverage.

    pip install atheris
    python tests/fuzz/coverage_guided.py TARGET [-max_total_time=SECONDS] [FOLDER]

The run starts from the corpus beside this file. If a folder is given, inputs that reach
new code are stored there; failing inputs are written to ``crash-*`` in the current
directory.
"""

import sys
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["extproc"]):
    from targets import TARGETS


def main() -> None:
    name, *options = sys.argv[1:] or [""]
    if name not in TARGETS:
        sys.exit(f"usage: coverage_guided.py {'|'.join(TARGETS)} [libFuzzer options]")
    folders = [option for option in options if not option.startswith("-")]
    options = [option for option in options if option.startswith("-")]
    corpus = Path(__file__).parent / "corpus" / name
    arguments = [sys.argv[0], "-max_len=65536", *options, *folders, str(corpus)]
    if not folders:
        # libFuzzer writes to the first folder, which must not be the committed corpus.
        scratch = Path("fuzz-new") / name
        scratch.mkdir(parents=True, exist_ok=True)
        arguments.insert(-1, str(scratch))
    atheris.Setup(arguments, TARGETS[name])
    atheris.Fuzz()


if __name__ == "__main__":
    main()
