"""The process keeps freed memory."""

import platform
import subprocess
import sys

import pytest

FAULTS_OF_BODIES = """
import resource, sys
from extproc.server.memory import keep_freed_memory
size = int(sys.argv[1])
if "keep" in sys.argv:
    assert keep_freed_memory(int(sys.argv[2]))

def request():
    body = b"x" * size  # the copies that a body of this size has at one time
    return [bytes(bytearray(body)) for _ in range(3)]

for _ in range(3):
    request()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(max(4, 12_000_000 // size)):
    request()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def page_faults(*options: str) -> int:
    command = [sys.executable, "-c", FAULTS_OF_BODIES, *options]
    out = subprocess.run(command, capture_output=True, text=True, check=True)
    return int(out.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc's settings")
def test_bodies_find_their_memory_mapped() -> None:
    assert (
        page_faults("300000", "0", "keep") < 100
    )  # without this setting, a request would cost 300 pages
    assert page_faults("300000") > 4_000
    assert page_faults("16000000", "16000000", "keep") < 100
    assert page_faults("16000000", "0", "keep") > 4_000
