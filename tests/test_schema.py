"""Settings that a reload applies, and settings that only a restart applies."""

from dataclasses import dataclass, field

import pytest

from extproc.schema import RESTART, check, keep_until_restart


@dataclass(frozen=True)
class Inner:
    free: int = 1
    bound: int = field(default=1, metadata=check("any", lambda value: True) | RESTART)


@dataclass(frozen=True)
class Outer:
    free: int = 1
    bound: str = field(default="a", metadata=RESTART)
    mixed: Inner = Inner()
    section: Inner = field(default=Inner(), metadata=RESTART)
    absent: Inner | None = field(default=None, metadata=RESTART)


@pytest.mark.parametrize(
    ("wanted", "in_force", "waiting"),
    [
        (Outer(), Outer(), []),
        (Outer(free=2, mixed=Inner(free=2)), Outer(free=2, mixed=Inner(free=2)), []),
        (Outer(free=2, bound="b"), Outer(free=2), ["bound"]),
        (Outer(mixed=Inner(2, 2)), Outer(mixed=Inner(2)), ["mixed.bound"]),
        (Outer(section=Inner(2, 2)), Outer(), ["section.free", "section.bound"]),
        (Outer(absent=Inner()), Outer(), ["absent"]),
    ],
)
def test_a_running_process_keeps_what_takes_a_restart(
    wanted: Outer, in_force: Outer, waiting: list[str]
) -> None:
    assert keep_until_restart(Outer(), wanted) == (in_force, waiting)
