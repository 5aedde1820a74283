"""Decide and Observe as messages, as unary gRPC calls, and as JSON over HTTP."""

import asyncio
import base64
import json
from collections.abc import Awaitable, Callable, Sequence
from typing import NoReturn

import aiohttp
import grpc
import pytest

from extproc.address import Address
from extproc.config import load_config
from extproc.exchange.body_parser import BodyParser
from extproc.exchange.json_elider import CHUNK_BYTES
from extproc.exchange.paths import ANY_PREFIX
from extproc.exchange.settings import ExchangeSettings
from extproc.rpc.call import Call, RpcError, Service, StatusCode
from extproc.server.admin.explain import Explainer
from extproc.server.admin.server import AdminServer
from extproc.server.observe.metrics import Metrics
from extproc.server.services.cooperative import TimeSlices
from extproc.server.services.decide import DECIDE, Api, InvalidArgumentError, WithApi
from extproc.server.services.ext_proc import ExtProcService
from extproc.server.transport.grpcio import GrpcioServer
from extproc.server.transport.native import NativeServer
from extproc.wire import router_pb2 as pb

from ..admin.reports import status_report
from ..in_force import make_in_force

MAX_BODY_BYTES = 20_000
TEXT = "Twelve words that we would like to have estimated, if we may. "
BODY = json.dumps(
    {"model": "m", "messages": [{"role": "user", "content": TEXT * 20}]}
).encode()


def make_service() -> ExtProcService:
    settings = ExchangeSettings(max_body_bytes=MAX_BODY_BYTES)
    return ExtProcService(make_in_force(settings=settings), Metrics())


def make_api() -> Api:
    return Api(make_service(), MAX_BODY_BYTES)


def test_decides_and_learns() -> None:
    service = make_service()
    api = Api(service, MAX_BODY_BYTES)
    answer = api.decide(pb.DecideRequest(body=BODY))
    assert (answer.pool, answer.reason) == ("short", "within_threshold")
    assert answer.category == "prose"
    assert answer.budget_tokens == answer.prompt_tokens + answer.output_tokens
    assert answer.bound_tokens >= answer.prompt_tokens > 200
    learned = api.observe(
        pb.ObserveRequest(
            decision=answer.decision, status=200, prompt_tokens=240, completion_tokens=9
        )
    )
    assert learned == pb.ObserveResponse()
    assert set(service.router.ratios.all()) == {"prose"}
    counted = service.metrics.registry.get_sample_value(
        "extproc_decisions_total",
        {"pool": "short", "category": "prose", "reason": "within_threshold"},
    )
    assert counted == 1
    assert (
        service.metrics.registry.get_sample_value(
            "extproc_observations_total", {"result": "learned"}
        )
        == 1
    )


def test_says_why_nothing_was_learned_and_what_went_wrong() -> None:
    api = make_api()
    decision = api.decide(pb.DecideRequest(body=BODY)).decision
    answer = api.observe(pb.ObserveRequest(decision=decision, status=503))
    assert answer.skipped == "status"
    answer = api.observe(
        pb.ObserveRequest(decision=decision, status=200, prompt_tokens=9000, attempts=2)
    )
    assert answer.misroute == "short_overflow"


@pytest.mark.parametrize(
    ("asked", "reason"),
    [
        (pb.DecideRequest(), "unparsable"),
        (pb.DecideRequest(body=b"{"), "unparsable"),
        (pb.DecideRequest(body=bytes(MAX_BODY_BYTES + 1)), "too_large"),
        (pb.DecideRequest(body=BODY, content_encoding="gzip"), "undecodable"),
        (pb.DecideRequest(body=BODY, path="/elsewhere"), "unparsable"),
    ],
    ids=["nothing", "no JSON", "too large", "not gzip", "another path"],
)
def test_what_cannot_be_read_gets_the_largest_pool(
    asked: pb.DecideRequest, reason: str
) -> None:
    answer = make_api().decide(asked)
    assert (answer.pool, answer.reason) == ("long", reason)
    assert answer.decision == b""


def test_a_long_model_name_is_cut_and_the_decision_comes_back() -> None:
    api = make_api()
    features = pb.Features(
        model="m" * 70_000, text_bytes=8, text_sample=b"No poem.", messages=1
    )
    answer = api.decide(pb.DecideRequest(features=features))
    assert len(answer.decision) < 4096
    observed = pb.ObserveRequest(decision=answer.decision, status=503)
    assert api.observe(observed).skipped == "status"


def test_features_stand_for_their_text() -> None:
    api = make_api()
    whole = api.decide(pb.DecideRequest(body=BODY))
    features = pb.Features(
        model="m",
        text_bytes=len(TEXT) * 20,
        text_sample=TEXT.encode() * 2,
        messages=1,
    )
    counted = api.decide(pb.DecideRequest(features=features))
    assert counted.prompt_tokens == whole.prompt_tokens
    assert counted.category == whole.category
    exact = pb.Features(prompt_tokens=8000, max_tokens=500)
    answer = api.decide(pb.DecideRequest(features=exact))
    assert (answer.prompt_tokens, answer.budget_tokens) == (8000, 8500)
    assert answer.pool == "long"


@pytest.mark.parametrize(
    "features",
    [
        pb.Features(text_bytes=10),
        pb.Features(text_sample=b"abc", text_bytes=2),
        pb.Features(text_sample=b"abc"),
        pb.Features(text_sample=b"abc", text_bytes=1 << 40),
        pb.Features(text_sample=bytes(70_000), text_bytes=70_000),
        pb.Features(text_sample=b"abc", text_bytes=3, prompt_tokens=4),
    ],
    ids=["no sample", "short of it", "no size", "huge", "large sample", "both"],
)
def test_features_that_contradict_are_refused(features: pb.Features) -> None:
    with pytest.raises(InvalidArgumentError, match="expected"):
        make_api().decide(pb.DecideRequest(features=features))


def test_hint_decides_the_category() -> None:
    answer = make_api().decide(pb.DecideRequest(body=BODY, category_hint="code"))
    assert answer.category == "code"


def grpcio_server(service: Service) -> GrpcioServer:
    return GrpcioServer(service, Address.parse("127.0.0.1:0"))


def native_server(service: Service) -> NativeServer:
    return NativeServer(service, Address.parse("127.0.0.1:0"))


@pytest.mark.parametrize("make_server", [grpcio_server, native_server])
def test_unary_grpc(
    make_server: Callable[[Service], GrpcioServer | NativeServer],
) -> None:
    async def run() -> None:
        service = make_service()
        server = make_server(WithApi(service, Api(service, MAX_BODY_BYTES)))
        await server.start()
        try:
            async with grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel:
                await asyncio.wait_for(call_methods(channel), 20)
        finally:
            await server.drain(0)

    asyncio.run(run())


async def call_methods(channel: grpc.aio.Channel) -> None:
    decide = channel.unary_unary(
        "/tokenbudget.v1.Router/Decide",
        pb.DecideRequest.SerializeToString,
        pb.DecideResponse.FromString,
    )
    observe = channel.unary_unary(
        "/tokenbudget.v1.Router/Observe",
        pb.ObserveRequest.SerializeToString,
        pb.ObserveResponse.FromString,
    )
    unread = channel.unary_unary("/tokenbudget.v1.Router/Decide")
    unknown = channel.unary_unary("/tokenbudget.v1.Router/Forget")
    answer = await decide(pb.DecideRequest(body=BODY))
    assert answer.pool == "short"
    learned = await observe(
        pb.ObserveRequest(decision=answer.decision, status=200, prompt_tokens=240)
    )
    assert learned == pb.ObserveResponse()
    for call, code in (
        (observe(pb.ObserveRequest(decision=b"?")), "INVALID_ARGUMENT"),
        (unread(b"\xff\xff"), "INVALID_ARGUMENT"),
        (unknown(b""), "UNIMPLEMENTED"),
    ):
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await call
        assert refused.value.code().name == code


LARGE_BODY = json.dumps(
    {"model": "m", "messages": [{"role": "user", "content": TEXT * 10_000}]}
).encode()


class Asked:
    """One unary Decide call and its reply."""

    def __init__(self, api: Api, slices: TimeSlices) -> None:
        self.sent: list[bytes] = []
        self.ended: bool | RpcError = False
        call = WithApi(make_service(), api, slices).open(DECIDE, {}, self.take)
        assert call is not None
        self.call: Call = call

    def take(self, messages: Sequence[bytes], end: bool | RpcError = False) -> None:
        assert not self.ended
        self.sent += messages
        self.ended = end

    def ask(self, body: bytes) -> None:
        asked = pb.DecideRequest(body=body).SerializeToString()
        self.take(*self.call.receive(asked))


def test_a_large_body_is_read_in_turns() -> None:
    api = Api(make_service(), len(LARGE_BODY))
    loop: list[Callable[[], None]] = []
    slices = TimeSlices(loop.append)
    large, small, gone = (Asked(api, slices) for _ in range(3))
    large.ask(LARGE_BODY)
    gone.ask(LARGE_BODY)
    assert large.call.half_closed() == ((), False)
    small.ask(BODY)
    assert small.ended is True
    assert not large.sent
    gone.call.closed(True)
    steps = 0
    while loop:
        loop.pop()()
        steps += 1
    assert steps > len(LARGE_BODY) // CHUNK_BYTES
    assert large.ended is True
    (answer,) = map(pb.DecideResponse.FromString, large.sent)
    at_once = api.decide(pb.DecideRequest(body=LARGE_BODY))
    assert answer == at_once
    assert not gone.sent
    assert not gone.ended


def test_what_goes_wrong_in_turns_ends_the_call() -> None:
    class Broken(Api):
        def decide(self, *args: object) -> NoReturn:
            raise ZeroDivisionError

    loop: list[Callable[[], None]] = []
    asked = Asked(Broken(make_service(), len(LARGE_BODY)), TimeSlices(loop.append))
    asked.ask(LARGE_BODY)
    with pytest.raises(RpcError, match="more than one"):
        asked.ask(BODY)
    with pytest.raises(ZeroDivisionError):  # noqa: PT012 - the loop's to report
        while loop:
            loop.pop()()
    assert isinstance(asked.ended, RpcError)
    assert asked.ended.status is StatusCode.INTERNAL


def over_http(
    steps: Callable[[aiohttp.ClientSession, str], Awaitable[None]],
    *,
    enabled: bool,
    service: ExtProcService | None = None,
) -> None:
    service = service or make_service()

    async def run() -> None:
        admin = AdminServer(
            Address.parse("127.0.0.1:0"),
            service.metrics.registry,
            lambda: True,
            status_report,
            Explainer(service.in_force),
            MAX_BODY_BYTES,
            Api(service, MAX_BODY_BYTES) if enabled else None,
        )
        url = f"http://{await admin.start()}"
        try:
            async with aiohttp.ClientSession() as session:
                await steps(session, url)
        finally:
            await admin.stop()

    asyncio.run(run())


@pytest.mark.parametrize("path", ["/decide", "/explain"])
def test_over_http_a_large_body_is_read_in_turns(
    path: str,
) -> None:
    steps: list[int] = []
    slices = 0

    class Noted(BodyParser):
        def step(self) -> bool:
            steps.append(slices)
            return super().step()

    class NotedApi(Api):
        def begin_parsing(self, asked: pb.DecideRequest) -> BodyParser:
            return Noted(ANY_PREFIX.find(asked.path), asked.body, "", len(LARGE_BODY))

    class NotedExplainer(Explainer):
        def begin_parsing(self, body: bytes, *how: str) -> BodyParser:
            return Noted(ANY_PREFIX.find(how[0]), body, "", len(LARGE_BODY))

    async def run() -> None:
        nonlocal slices
        service = make_service()
        explainer = NotedExplainer(service.in_force)
        admin = AdminServer(
            Address.parse("127.0.0.1:0"),
            service.metrics.registry,
            lambda: True,
            status_report,
            explainer,
            len(LARGE_BODY),
            NotedApi(service, len(LARGE_BODY)),
        )
        url = f"http://{await admin.start()}{path}"
        async with aiohttp.ClientSession() as session:
            asking = asyncio.ensure_future(session.post(url, data=LARGE_BODY))
            while not asking.done():
                slices += 1
                await asyncio.sleep(0)
            assert asking.result().status == 200
            asking.result().close()
        await admin.stop()

    asyncio.run(run())
    assert len(steps) > len(LARGE_BODY) // CHUNK_BYTES
    assert len(set(steps)) == len(steps)


def test_json_over_http() -> None:
    async def steps(session: aiohttp.ClientSession, url: str) -> None:
        methods = f"{url}/tokenbudget.v1.Router"
        asked = {"body": base64.b64encode(BODY).decode(), "category_hint": "code"}
        async with session.post(f"{methods}/Decide", json=asked) as response:
            assert response.status == 200
            answer = await response.json()
        assert (answer["pool"], answer["category"]) == ("short", "code")
        observation = {
            "decision": answer["decision"],
            "status": 200,
            "prompt_tokens": 240,
            "completion_tokens": 3,
        }
        async with session.post(f"{methods}/Observe", json=observation) as response:
            assert await response.json() == {"skipped": "", "misroute": ""}
        for body in ({"decision": "AAAA"}, {"no_such_field": 1}, []):
            async with session.post(f"{methods}/Observe", json=body) as response:
                assert response.status == 400
                assert (await response.json())["code"] == "invalid_argument"
        async with session.post(f"{methods}/Observe", data="{}") as response:
            assert response.status == 415

    over_http(steps, enabled=True)


def test_decide_takes_the_body_as_it_is_and_answers_in_headers() -> None:
    async def steps(session: aiohttp.ClientSession, url: str) -> None:
        ask = f"{url}/decide?path=/v1/chat/completions&accel=@"
        async with session.post(ask, data=BODY) as response:
            answer = await response.json()
            headers = response.headers
        assert headers["x-llm-pool"] == "short"
        assert headers["x-llm-budget"] == str(answer["budget_tokens"])
        assert headers["x-llm-decision"] == answer["decision"]
        assert headers["x-accel-redirect"] == "@short"
        async with session.post(f"{url}/decide", data=BODY) as response:
            assert "x-accel-redirect" not in response.headers
        async with session.post(f"{url}/decide?accel=a%0d%0ab", data=BODY) as response:
            assert response.status == 400
        for size in (MAX_BODY_BYTES + 1, 2 * MAX_BODY_BYTES + 1):
            async with session.post(ask, data=bytes(size)) as response:
                assert (await response.json())["reason"] == "too_large"
                assert response.headers["x-accel-redirect"] == "@long"

    over_http(steps, enabled=True)


FLEET = load_config(
    "models:\n"
    "  a: {adapters: [a-lora], pools: [{name: a-short, max_model_len: 9000}, "
    "{name: a-long, max_model_len: 90000}]}\n"
    "  b: {pools: [{name: b, max_model_len: 9000}]}\n",
    {},
)


def fleet_service() -> ExtProcService:
    return ExtProcService(make_in_force(config=FLEET), Metrics())


def chat_to(model: str) -> bytes:
    messages = [{"role": "user", "content": "Hello"}]
    return json.dumps({"model": model, "messages": messages, "max_tokens": 1}).encode()


@pytest.mark.parametrize(
    ("asked", "model", "pool"),
    [
        (pb.DecideRequest(body=chat_to("a-lora")), "a", "a-short"),
        (pb.DecideRequest(body=chat_to("a"), model="b"), "b", "b"),
        (pb.DecideRequest(body=chat_to("a"), model="c"), "a", "a-short"),
        (pb.DecideRequest(body=chat_to("c"), model="a-lora"), "a", "a-short"),
        (pb.DecideRequest(body=b"{", model="a"), "a", "a-long"),
        (pb.DecideRequest(features=pb.Features(model="a-lora")), "a", "a-short"),
        (pb.DecideRequest(features=pb.Features(), model="b"), "b", "b"),
        (
            pb.DecideRequest(
                body=b"{", path="/openai/deployments/a-lora/chat/completions"
            ),
            "a",
            "a-long",
        ),
        (pb.DecideRequest(body=chat_to("c")), "", ""),
        (pb.DecideRequest(body=b"{"), "", ""),
    ],
)
def test_several_models(asked: pb.DecideRequest, model: str, pool: str) -> None:
    answer = Api(fleet_service(), MAX_BODY_BYTES).decide(asked)

    assert (answer.model, answer.pool) == (model, pool)
    assert (answer.reason == "unknown_model") == (not pool)


def test_several_models_over_http() -> None:
    async def steps(session: aiohttp.ClientSession, url: str) -> None:
        async with session.post(f"{url}/decide", data=chat_to("a-lora")) as response:
            assert response.headers["x-llm-model"] == "a"
            assert (await response.json())["model"] == "a"
        for body in (b"{", bytes(2 * MAX_BODY_BYTES + 1)):
            ask = f"{url}/decide?model=a-lora&accel=@"
            async with session.post(ask, data=body) as response:
                assert response.headers["x-llm-model"] == "a"
                assert response.headers["x-accel-redirect"] == "@a-long"
        async with session.post(f"{url}/decide?accel=@", data=b"{") as response:
            assert (await response.json())["reason"] == "unknown_model"
            assert not {"x-llm-model", "x-accel-redirect"} & set(response.headers)

    over_http(steps, enabled=True, service=fleet_service())


def test_http_is_off_unless_it_is_enabled() -> None:
    async def steps(session: aiohttp.ClientSession, url: str) -> None:
        for path in ("decide", "tokenbudget.v1.Router/Decide"):
            async with session.post(f"{url}/{path}", json={}) as response:
                assert response.status == 404

    over_http(steps, enabled=False)
