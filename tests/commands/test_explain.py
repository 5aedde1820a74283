"""``extproc explain`` for files, standard input and a running server."""

import io
import json
from pathlib import Path

import pytest

from extproc.cli import main
from extproc.commands.explain import render
from extproc.routing.bound import Bounded
from extproc.routing.policy import Policy, Pool
from extproc.routing.ratio import TextEma, TextRatios
from extproc.routing.risk import NoMargin
from extproc.routing.router import Router
from extproc.server.admin.explain import Explainer

from ..server.in_force import make_in_force

BODY = {"model": "m", "messages": [{"role": "user", "content": "Tell me all."}]}


@pytest.fixture
def body(tmp_path: Path) -> Path:
    path = tmp_path / "body.json"
    path.write_text(json.dumps(BODY | {"max_tokens": 100}))
    return path


def test_json_is_one_object(body: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", "--json", str(body)]) == 0
    explanation = json.loads(capsys.readouterr().out)
    assert explanation["decision"]["pool"] == "short"
    assert explanation["output"] == {
        "tokens": 100,
        "declared": True,
        "limit_tokens": 100,
    }


def test_configuration_decides(
    body: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "config.yaml"
    config.write_text(
        "pools: [{name: tiny, max_model_len: 64}, {name: huge, max_model_len: 999}]"
    )
    assert main(["explain", "--config", str(config), str(body)]) == 0
    out = capsys.readouterr().out
    assert "huge: over_capacity" in out
    assert "> 64, max_model_len of tiny" in out


def test_table_holds_every_number_for_people(
    body: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["explain", str(body), "--hint", "nonsense"]) == 0
    out = capsys.readouterr().out
    for expected in (
        "/v1/chat/completions",
        "prose (from the text; the hint is not a known category)",
        "100 tokens (the client's limit)",
        "<- chosen",
        "short: within_threshold",
        "by text",
        "template",
    ):
        assert expected in out
    assert max(map(len, out.splitlines())) <= 80
    assert "Tell me" not in out


def test_standard_input(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    stdin = io.TextIOWrapper(io.BytesIO(json.dumps(BODY).encode()))
    monkeypatch.setattr("sys.stdin", stdin)
    assert main(["explain", "-", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["output"]["declared"] is False


def test_a_body_that_is_no_request_is_explained_too(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "body.json"
    path.write_text("no JSON")
    assert main(["explain", str(path)]) == 1
    assert "long: unparsable" in capsys.readouterr().out


def test_a_missing_file_is_a_bad_argument(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", "/nowhere/body.json"]) == 2
    assert "/nowhere/body.json: No such file" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("url", "status"), [("http://127.0.0.1:1", 1), ("ftp://elsewhere", 2)]
)
def test_a_server_that_does_not_answer_is_a_failure(
    url: str, status: int, body: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["explain", "--server", url, str(body)]) == status
    assert url in capsys.readouterr().err


@pytest.mark.parametrize(
    "body",
    [
        {"prompt": [1, 2, 3], "n": 4},
        {"prompt": ["a", "bb", "ccc"], "max_tokens": 9000},
    ],
    ids=["token ids", "several prompts"],
)
def test_renders_completions(body: dict[str, object]) -> None:
    router = Router(
        Policy([Pool("short", 8192, 8192), Pool("long", 65536, 65536)]),
        Bounded(TextEma(), NoMargin()),
        TextRatios(),
    )
    explainer = Explainer(make_in_force(router))
    explanation = explainer.explain(json.dumps(body).encode(), "/v1/completions")
    text = "\n".join(render(explanation))
    if body.get("n"):
        assert "counted by the client: token ids" in text
        assert "4 parallel sequences" in text
    else:
        assert "the longest of 3 prompts" in text


@pytest.mark.parametrize(
    ("body", "why"),
    [
        (b"{", "not JSON"),
        (b"[]", "a JSON list; expected an object"),
        (b"{}", "messages: missing; expected a list of messages"),
        (b'{"messages": []}', "messages: an empty list; expected a list of messages"),
        (b'{"messages": [{}, "secret"]}', "messages[1]: text; expected an object"),
    ],
)
def test_an_unparsable_body_is_explained_by_its_field(
    body: bytes, why: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "body.json"
    file.write_bytes(body)

    assert main(["explain", str(file)]) == 1
    out = capsys.readouterr().out
    assert why in out
    assert "secret" not in out


def test_what_no_pool_holds_and_what_is_not_learned_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "body.json"
    file.write_text(json.dumps(BODY | {"max_tokens": 100_000}))

    assert main(["explain", str(file)]) == 0
    out = capsys.readouterr().out
    assert "it fits no pool: long, the largest, has 65,536 tokens" in out
    assert "nothing learned about this model yet" in out
