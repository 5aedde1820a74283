"""The public API: the examples in its docstring and in the README run as they are."""

import doctest
import re
from pathlib import Path

import extproc.library

README = Path(__file__).parents[1] / "extproc" / "README.md"
BODY = b'{"messages": [{"role": "user", "content": "Hello!"}]}'


def test_the_docstrings_example_runs() -> None:
    result = doctest.testmod(extproc.library, raise_on_error=True)
    assert result.attempted > 5
    assert result.failed == 0


def test_the_readmes_example_runs() -> None:
    (example,) = re.findall(
        r"```python\n(from extproc\.library.*?)```", README.read_text(), re.DOTALL
    )
    for body, reason in ((BODY, "within_threshold"), (b"{", "unparsable")):
        names = {"body": body}
        exec(example, names)
        assert names["decision"].reason == reason  # type: ignore[attr-defined]


def test_exports_are_what_it_says() -> None:
    assert sorted(extproc.library.__all__) == extproc.library.__all__
    for name in extproc.library.__all__:
        assert getattr(extproc.library, name).__doc__
