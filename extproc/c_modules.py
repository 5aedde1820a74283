"""The rule by which an optional module in C is used: it has to match the source."""

from __future__ import annotations

from types import ModuleType


def check_interface(module: ModuleType, expected: int) -> None:
    """Check that a module in C was built from the present source.

    A module built from an older source stays in its folder if the source is updated and
    not installed again.

    Args:
        expected: number of the present interface, ``INTERFACE`` in the module's source.

    Raises:
        ImportError: the module has another interface, so it is as good as not built.
    """
    if getattr(module, "INTERFACE", None) != expected:
        raise ImportError(f"{module.__name__}: expected INTERFACE {expected}")
