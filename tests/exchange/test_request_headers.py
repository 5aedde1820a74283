"""What a request's headers decide, and which of them are read."""

from collections.abc import Mapping
from typing import Any

import pytest
from msgspec.structs import replace

from extproc.exchange.events import (
    AskRequestBody,
    BodyMode,
    Continue,
    NotRouted,
    RequestBody,
    Step,
)
from extproc.exchange.paths import PathTable
from extproc.exchange.settings import HEADERS_READ, ExchangeSettings
from extproc.routing.policy import Reason

from .messages import (
    CAP,
    CHAT,
    DUPLEX,
    LONG,
    SETTINGS,
    SHORT,
    chat,
    exchange,
    play,
    request,
    response,
    routed,
    send,
)


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("/v1/models", NotRouted.PATH),
        ("/health", NotRouted.PATH),
        ("", NotRouted.PATH),
        ("/team/v1/tokenize", NotRouted.UNREAD),
        ("/v1/audio/transcriptions", NotRouted.UNREAD),
    ],
)
def test_a_path_that_is_not_routed_goes_on_without_us(
    path: str, reason: NotRouted
) -> None:
    step = send(exchange(), request(path=path))

    assert step == Step(Continue(), end=True, not_routed=reason)


def test_a_method_other_than_post_goes_on_without_us() -> None:
    step = send(exchange(), request(method="GET"))

    assert step == Step(Continue(), end=True, not_routed=NotRouted.METHOD)


def test_a_path_under_a_prefix_is_routed() -> None:
    body = chat(max_tokens=10)
    head = request(body, path="/team/v1/chat/completions/?x=1")

    _, route = play(exchange(), head, RequestBody(body, True))

    assert routed(route).pool == SHORT


def test_a_prefix_that_is_not_configured_is_not_routed() -> None:
    only = ExchangeSettings(CAP, PathTable(["/team"]))

    for path, reason in (
        (f"/team{CHAT}", None),
        (CHAT, NotRouted.PATH),
    ):
        step = send(exchange(settings=only), request(b"{}", path=path))
        assert step.not_routed is reason


def test_the_model_in_a_path_is_that_of_a_body_without_one() -> None:
    path = "/openai/deployments/mine/chat/completions"
    for body, model in ((chat(), "m"), (chat(model=None), "mine")):
        _, route = play(exchange(), request(body, path=path), RequestBody(body, True))
        assert routed(route).model == model


@pytest.mark.parametrize("mode", [None, *BodyMode])
def test_a_request_without_a_body_goes_on_without_us(mode: BodyMode | None) -> None:
    machine = exchange(watch=True)

    step = send(machine, request(end=True, mode=mode))

    assert step == Step(Continue(), end=True, not_routed=NotRouted.NO_BODY)
    assert machine.decision is None


@pytest.mark.parametrize("length", [0, 1, CAP])
def test_a_body_within_the_cap_is_asked_for(length: int) -> None:
    assert send(exchange(), request(length)) == Step(AskRequestBody())


@pytest.mark.parametrize(
    ("length", "reason"),
    [
        (str(CAP + 1), Reason.TOO_LARGE),
        ("9" * 400, Reason.TOO_LARGE),
        ("9" * 5000, Reason.TOO_LARGE),
        ("0" * 40 + str(CAP + 1), Reason.TOO_LARGE),
    ],
)
def test_a_body_that_is_too_large_goes_to_the_default_pool_at_once(
    length: str, reason: Reason
) -> None:
    step = send(exchange(watch=True), request(None, content_length=length))

    assert step.end
    assert (routed(step).pool, routed(step).reason) == (LONG, reason)
    assert routed(step).features is None


NO_LENGTH = ["", "-1", "1e3", "٣", "5, 5"]


@pytest.mark.parametrize("length", NO_LENGTH)
def test_a_body_of_unknown_length_is_asked_for(length: str) -> None:
    body = chat(max_tokens=10)

    ask, route = play(
        exchange(), request(None, content_length=length), RequestBody(body, True)
    )

    assert ask == Step(AskRequestBody())
    assert (routed(route).pool, route.end) == (SHORT, True)


@pytest.mark.parametrize("length", NO_LENGTH)
def test_a_body_of_unknown_length_goes_to_the_default_pool_if_so_configured(
    length: str,
) -> None:
    unread = ExchangeSettings(CAP, reads_unknown_length=False)

    step = send(exchange(settings=unread), request(None, content_length=length))

    assert step.end
    assert (routed(step).pool, routed(step).reason) == (LONG, Reason.LENGTH_UNKNOWN)


@pytest.mark.parametrize("reads", [False, True])
def test_a_length_is_no_matter_in_full_duplex(reads: bool) -> None:
    settings = ExchangeSettings(CAP, reads_unknown_length=reads)
    body = chat(max_tokens=10)
    _, step = play(
        exchange(settings=settings), request(None, mode=DUPLEX), RequestBody(body, True)
    )

    assert routed(step).pool == SHORT


def test_leading_zeros_do_not_make_a_length_large() -> None:
    step = send(exchange(), request(None, content_length="0" * 40 + "7"))

    assert step.reply == AskRequestBody()


class Noted(dict[str, str]):
    """Headers that record which of their values were read."""

    def __init__(self, headers: Mapping[str, str], asked: set[str]) -> None:
        super().__init__(headers)
        self.asked = asked

    def get(self, key: str, default: Any = None) -> Any:
        self.asked.add(key)
        return super().get(key, default)


def test_no_other_headers_are_looked_at_than_those_said() -> None:
    asked: set[str] = set()
    body = chat()
    sent = request(body, content_encoding="identity")
    machine = exchange(watch=True)
    play(
        machine,
        replace(sent, headers=Noted(sent.headers, asked)),
        RequestBody(body, True),
        replace(response(), headers=Noted(response().headers, asked)),
    )
    assert asked == {*HEADERS_READ, SETTINGS.category_header}
