"""The core as a library: the example of its docstring runs as it stands."""

import doctest

import extproc.routing


def test_example_runs() -> None:
    result = doctest.testmod(extproc.routing, raise_on_error=True)
    assert result.attempted > 5
    assert result.failed == 0


def test_exports_are_what_it_says() -> None:
    assert sorted(extproc.routing.__all__) == extproc.routing.__all__
    for name in extproc.routing.__all__:
        assert getattr(extproc.routing, name).__doc__
