"""The soak test of 20 seconds has the same limits as the run of one hour."""

import subprocess
import sys
from pathlib import Path

import pytest

SOAK = Path(__file__).parents[1] / "benchmarks" / "soak.py"


@pytest.mark.slow
def test_nothing_has_grown_at_the_end() -> None:
    soak = subprocess.run(
        [sys.executable, str(SOAK), "--seconds", "20"],
        capture_output=True,
        text=True,
        check=False,
    )

    print(soak.stdout)
    assert soak.returncode == 0, soak.stdout + soak.stderr
    assert "failed: 0" in soak.stdout
    assert "open exchanges without clients: 0" in soak.stdout
