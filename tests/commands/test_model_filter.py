import pytest

from extproc.commands.gateway_fleet import BUFFER_LIMIT_BYTES, Fleet, Model
from extproc.commands.model_filter import model_source


@pytest.mark.parametrize(
    ("glob", "pattern"),
    [
        ("legal-*", "^legal%-.*$"),
        ("org/m?", "^org%/m.$"),
        ("v[12]", "^v[12]$"),
        ("v[!a-c].x", "^v[^a-c]%.x$"),
        ("v[]%^]", "^v[%]%%%^]$"),
        ("v[", "^v%[$"),
        ("é*", "^\\195\\169.*$"),
    ],
)
def test_a_glob_is_lua_s_pattern(glob: str, pattern: str) -> None:
    source = model_source(Fleet([Model("m", ["p"], [glob])]), "last")

    assert f'{{"{pattern}", "m"}}' in source


def test_the_filter_knows_every_name() -> None:
    adapters = ["lora-1", "legal-*"]
    fleet = Fleet(
        [Model("llama", ["short", "long"], adapters), Model("org/vlm", ["vlm"])]
    )
    source = model_source(fleet, "last-*")

    assert '["lora-1"] = "llama"' in source
    assert '{"^legal%-.*$", "llama"}' in source
    assert '["org/vlm"] = "org/vlm"' in source
    assert f"max_bytes = {BUFFER_LIMIT_BYTES}" in source
    assert 'undecided = "^last%-.*$"' in source
