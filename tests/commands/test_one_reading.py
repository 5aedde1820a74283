"""The server, ``explain`` and ``replay`` give the same reason for the same body."""

import base64
import gzip
import json
from pathlib import Path

import pytest

from extproc.cli import main
from extproc.config import Config
from extproc.exchange.body_parser import BodyParser
from extproc.exchange.deciding import Decider
from extproc.exchange.events import Release, RequestBody, RequestHeaders, Route, Step
from extproc.exchange.machine import Exchange
from extproc.exchange.settings import ExchangeSettings
from extproc.routing.explanation import NotRoutedExplanation
from extproc.routing.policy import Reason
from extproc.server.admin.explain import Explainer
from extproc.server.build import build_generation, build_router
from extproc.server.in_force import InForce

PATH = "/v1/chat/completions"
CAP = Config().server.max_body_bytes
ELEMENTS = b'{"messages":[{"content":[' + b'"",' * 200_000 + b'""]}]}'
SHORT = b'{"messages":[{"role":"user","content":"Hi"}],"max_tokens":9}'

# Each item is a body, its content-encoding, and the reason for the decision.
BODIES = {
    "plain": (SHORT, "", Reason.WITHIN_THRESHOLD),
    "gzip": (gzip.compress(SHORT), "gzip", Reason.WITHIN_THRESHOLD),
    "huge-element-count": (ELEMENTS, "", Reason.TOO_LARGE),
    "huge-element-count-gzip": (gzip.compress(ELEMENTS), "gzip", Reason.TOO_LARGE),
    "over-the-cap": (SHORT + b" " * CAP, "", Reason.TOO_LARGE),
    "not-gzip": (SHORT, "gzip", Reason.UNDECODABLE),
    "unknown-encoding": (SHORT, "lzw", Reason.UNDECODABLE),
    "cut": (SHORT[:-3], "", Reason.UNPARSABLE),
    "no-messages": (b"{}", "", Reason.UNPARSABLE),
    "over-capacity": (
        b'{"messages":[{"content":"Hi"}],"max_tokens":9000}',
        "",
        Reason.OVER_CAPACITY,
    ),
}


def reason_live(body: bytes, encoding: str) -> str:
    router = build_router(Config())
    exchange = Exchange(Decider(router, ExchangeSettings(CAP), lambda decision: False))
    headers = {":method": "POST", ":path": PATH, "content-length": str(len(body))}
    if encoding:
        headers["content-encoding"] = encoding
    step = exchange.receive(RequestHeaders(headers))
    assert isinstance(step, Step)
    if not isinstance(step.reply, Route):
        result = exchange.receive(RequestBody(body, end_of_stream=True))
        step = exchange.resume() if isinstance(result, BodyParser) else result
    assert isinstance(step.reply, Route | Release)
    assert step.reply.decision is not None
    return step.reply.decision.reason


def reason_explained(body: bytes, encoding: str) -> str:
    explainer = Explainer(InForce(build_generation(Config())))
    explanation = explainer.explain(body, PATH, encoding=encoding)
    assert not isinstance(explanation, NotRoutedExplanation)
    return explanation.decision.reason


@pytest.mark.parametrize(
    ("body", "encoding", "reason"), BODIES.values(), ids=list(BODIES)
)
def test_one_reason_for_one_body(
    body: bytes,
    encoding: str,
    reason: Reason,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    entry = {
        "path": PATH,
        "body_base64": base64.b64encode(body).decode(),
        "headers": {"Content-Encoding": encoding},
        "usage": {"prompt_tokens": 9, "completion_tokens": 3},
    }
    log = tmp_path / "log.jsonl"
    log.write_text(json.dumps(entry) + "\n")

    assert main(["replay", str(log), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)

    assert report["reasons"] == {reason: 1}
    assert reason_live(body, encoding) == reason
    assert reason_explained(body, encoding) == reason
