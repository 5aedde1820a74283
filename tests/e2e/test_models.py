"""A fleet of three models on a real Envoy, where no request reaches a wrong model."""

import gzip
import json
import urllib.request
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from extproc.demo.stack.envoy_config import ext_proc_filter
from extproc.demo.stack.stack import Router, router

from ..patience import PATIENCE_S, be_patient, wait_until
from .fleet import FLEET, LONG, NAMES, POOLS, chat, pool_of
from .outside import Client, Response
from .scripted import ScriptedBackend
from .unsized import PATH, SENDERS, send_chunked, send_http2

pytestmark = [pytest.mark.e2e, pytest.mark.xdist_group("e2e")]

MIB = 1 << 20


@pytest.fixture(scope="module")
def explain(models_router: Router) -> Callable[[bytes], Any]:
    def ask(body: bytes) -> Any:
        url = f"{models_router.admin_url}/explain"
        with urllib.request.urlopen(url, body, timeout=PATIENCE_S) as response:
            return json.load(response)

    return ask


class TestWithoutRouter:
    """Envoy's behavior if the router's address does not respond."""

    @pytest.fixture(scope="class")
    @classmethod
    def fleet(cls, start_fleet: Callable[..., Client]) -> Client:
        return start_fleet(1)

    @pytest.mark.parametrize("name", NAMES)
    @pytest.mark.parametrize("content", ["Hello", LONG], ids=["short", "long"])
    def test_a_request_reaches_its_own_model_s_largest_pool(
        self, name: str, content: str, fleet: Client
    ) -> None:
        response = fleet.post(PATH, chat(name, content))

        assert (response.status, pool_of(response)) == (200, POOLS[NAMES[name]][-1])

    @pytest.mark.parametrize(
        ("body", "model"),
        [
            ('{"x": {"model": "llama-3.1-8b"}, "model": "qwen3-32b"}', "qwen3-32b"),
            ('{"model": "qwen3-32b", "x": [{"model": "vlm"}]}', "qwen3-32b"),
            (
                r'{"x": "\"model\": \"llama-3.1-8b\"", "model": "qwen3-32b"}',
                "qwen3-32b",
            ),
            (r'{"x": "\\", "model": "qwen3-32b", "y": "\\\""}', "qwen3-32b"),
            ('{"model": "llama-3.1-8b", "model": "qwen3-32b"}', "qwen3-32b"),
            ('\n{ "a":[1, {}] ,\t"model" :\r\n"qwen3-32b" } ', "qwen3-32b"),
            ('{"messages": "é漢🙂\\u0022", "model": "qwen3-32b"}', "qwen3-32b"),
        ],
    )
    def test_decoys_name_no_model(self, body: str, model: str, fleet: Client) -> None:
        response = fleet.post(PATH, body.encode())

        assert (response.status, pool_of(response)) == (200, POOLS[model][-1])

    @pytest.mark.parametrize(
        ("body", "status"),
        [
            (chat("gpt-4"), 404),
            (chat("illegal-de"), 404),
            (chat("llama-3.1-8b-instruct"), 404),
            (chat(None), 400),
            (chat(1), 400),
            (chat({"model": "qwen3-32b"}), 400),
            (b'{"model": "qwen3-32b"', 400),
            (b'[{"model": "qwen3-32b"}]', 400),
            (b'"model": "qwen3-32b"', 400),
            (b"\xff\xfe", 400),
            (b"", 400),
        ],
    )
    def test_without_a_model_of_the_fleet_no_server_is_asked(
        self, body: bytes, status: int, fleet: Client, scripted: ScriptedBackend
    ) -> None:
        before = len(scripted.received)

        response = fleet.post(PATH, body)

        assert response.status == status
        assert response.json()["error"]["code"] == status
        assert len(scripted.received) == before

    def test_what_cannot_be_read_is_said_to_be_tried_again(self, fleet: Client) -> None:
        body = gzip.compress(chat("qwen3-32b"))
        response = fleet.post(PATH, body, {"content-encoding": "gzip"})
        assert response.status == 503

    @pytest.mark.parametrize("mib", [2, 20])
    def test_a_large_body_reaches_its_own_model(self, mib: int, fleet: Client) -> None:
        response = fleet.post(PATH, chat("qwen3-32b", "A" * (mib * MIB)))

        assert (response.status, pool_of(response)) == (200, "qwen-long")

    def test_a_body_above_the_limit_is_refused(self, fleet: Client) -> None:
        head = f"POST {PATH} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
        length = f"content-length: {40 * MIB}\r\nconnection: close\r\n\r\n"
        assert fleet.raw((head + length).encode()).startswith(b"HTTP/1.1 503")

        body = chat("qwen3-32b", "A" * (40 * MIB))
        assert send_chunked(fleet, [body[:MIB], body[MIB:]]).status == 413

    @pytest.mark.parametrize("send", [send_chunked, send_http2])
    def test_a_body_without_a_length_reaches_its_own_model(
        self, send: Callable[..., Response], fleet: Client
    ) -> None:
        body = chat("qwen3-32b", LONG)
        pieces = [body[at : at + 50_000] for at in range(0, len(body), 50_000)]

        response = send(fleet, pieces)

        assert (response.status, pool_of(response)) == (200, "qwen-long")

    def test_clients_headers_do_not_count(self, fleet: Client) -> None:
        headers = {"x-llm-model": "llama-3.1-8b", "x-llm-pool": "llama-short"}

        assert pool_of(fleet.post(PATH, chat("qwen3-32b"), headers)) == "qwen-long"

    def test_a_form_names_its_model(self, fleet: Client) -> None:
        form = (
            b'--x\r\nContent-Disposition: form-data; name="file"; filename="a.wav"\r\n'
            b"Content-Type: audio/wav\r\n\r\nRIFF\r\n"
            b'--x\r\nContent-Disposition: form-data; name="model"\r\n\r\n'
            b"qwen2.5-vl-7b\r\n--x--\r\n"
        )
        headers = {"content-type": "multipart/form-data; boundary=x"}

        response = fleet.post("/v1/audio/transcriptions", form, headers)

        assert pool_of(response) == "vlm"

    @pytest.mark.parametrize(
        ("method", "path", "status"),
        [
            ("GET", "/v1/models/qwen3-32b", 400),
            ("GET", "/v1/chat/completions", 400),
            ("GET", "/v1/responses/resp_1", 503),
            ("DELETE", "/v1/responses/resp_1", 503),
            ("GET", "/v1/responses/resp_1/input_items?limit=1", 503),
        ],
    )
    def test_a_request_without_a_body_reaches_no_server(
        self,
        method: str,
        path: str,
        status: int,
        fleet: Client,
        scripted: ScriptedBackend,
    ) -> None:
        before = len(scripted.received)

        response = fleet.request(method, path)

        assert response.status == status
        assert response.json()["error"]["code"] == status
        assert len(scripted.received) == before

    def test_the_models_of_the_fleet_are_listed(self, fleet: Client) -> None:
        listed = fleet.request("GET", "/v1/models").json()["data"]

        assert {each["id"] for each in listed} == {*POOLS, "support-v2"}


class TestWithRouter:
    """With the router, each request is decided by its model."""

    @pytest.fixture(scope="class")
    @classmethod
    def fleet(cls, models_router: Router, start_fleet: Callable[..., Client]) -> Client:
        client = start_fleet(models_router.port)
        wait_until(lambda: client.envoy.healthy_endpoints("extproc") == 1)
        return client

    @pytest.mark.parametrize("name", NAMES)
    @pytest.mark.parametrize("content", ["Hello", LONG], ids=["short", "long"])
    @pytest.mark.parametrize("send", SENDERS)
    def test_the_model_s_right_pool_answers_and_explain_agrees(
        self,
        name: str,
        content: str,
        send: Callable[[Client, bytes], Response],
        fleet: Client,
        explain: Callable[[bytes], Any],
    ) -> None:
        pools = POOLS[NAMES[name]]
        pool = pools[0] if content == "Hello" else pools[-1]
        body = chat(name, content)

        response = send(fleet, body)

        assert (response.status, pool_of(response)) == (200, pool)
        assert explain(body)["decision"]["pool"] == pool

    @pytest.mark.parametrize(("name", "status"), [("gpt-4", 404), (None, 400)])
    def test_an_unknown_model_is_refused(
        self, name: str | None, status: int, fleet: Client
    ) -> None:
        assert fleet.post(PATH, chat(name)).status == status

    @pytest.mark.parametrize("mib", [2, 20])
    def test_a_body_above_the_cap_reaches_its_own_model(
        self, mib: int, fleet: Client
    ) -> None:
        body = chat("qwen3-32b", "A" * (mib * MIB))
        assert pool_of(fleet.post(PATH, body)) == "qwen-long"
        assert pool_of(send_chunked(fleet, [body[:MIB], body[MIB:]])) == "qwen-long"

    def test_a_compressed_body_is_read(self, fleet: Client) -> None:
        body = gzip.compress(chat("support-v2"))
        response = fleet.post(PATH, body, {"content-encoding": "gzip"})
        assert pool_of(response) == "llama-short"

    def test_the_backend_sees_the_base_model(
        self, fleet: Client, scripted: ScriptedBackend
    ) -> None:
        headers = {"x-llm-model": "vlm", "x-llm-pool": "vlm"}
        fleet.post(PATH, chat("support-v2"), headers)
        received = scripted.received[-1].headers
        assert received["x-llm-model"] == "llama-3.1-8b"
        assert received["x-llm-pool"] == "llama-short"


class TestKeptResponses:
    """The servers of one pool store responses under identifiers that contain no model."""

    @pytest.fixture(scope="class")
    @classmethod
    def fleet(
        cls,
        start_fleet: Callable[..., Client],
        tmp_path_factory: pytest.TempPathFactory,
    ) -> Iterator[Client]:
        config = FLEET | {"requests": {"responses_pool": "qwen-short"}}
        started = router(config, tmp_path_factory.mktemp("router"))
        with started.child:
            started.wait_ready()
            client = start_fleet(started.port)
            wait_until(lambda: client.envoy.healthy_endpoints("extproc") == 1)
            yield client
            started.child.kill()

    @pytest.mark.parametrize(
        ("method", "path", "body", "pool"),
        [
            ("POST", "", {"model": "qwen3-32b"}, "qwen-short"),
            ("POST", "", {"model": "qwen3-32b", "store": True}, "qwen-short"),
            ("POST", "", {"model": "qwen3-32b", "input": LONG}, "qwen-short"),
            (
                "POST",
                "",
                {"model": "qwen3-32b", "previous_response_id": "resp_1"},
                "qwen-short",
            ),
            ("GET", "/resp_1", None, "qwen-short"),
            ("GET", "/resp_1/input_items?limit=2", None, "qwen-short"),
            ("POST", "/resp_1/cancel", None, "qwen-short"),
            ("DELETE", "/resp_1", None, "qwen-short"),
            (
                "POST",
                "",
                {"model": "qwen3-32b", "input": LONG, "store": False},
                "qwen-long",
            ),
            ("POST", "", {"model": "support-v2"}, "llama-short"),
            ("POST", "", {"model": "legal-de", "store": True}, "llama-long"),
        ],
    )
    def test_a_conversation_reaches_the_pool_that_keeps_it(
        self,
        method: str,
        path: str,
        body: dict[str, Any] | None,
        pool: str,
        fleet: Client,
    ) -> None:
        if body is not None:
            body = {"input": "Hello", "max_output_tokens": 4} | body

        response = fleet.request(method, f"/v1/responses{path}", body)

        assert (response.status, pool_of(response)) == (200, pool)


class TestModelHeader:
    """An upstream parser sets the model in a header that clients cannot set."""

    HEADER = "x-gateway-model-name"

    @pytest.fixture(scope="class")
    @classmethod
    def fleet(
        cls, start_fleet: Callable[..., Client], tmp_path_factory: Any
    ) -> Iterator[Client]:
        config = FLEET | {"model": {"header": cls.HEADER}}
        started = router(config, tmp_path_factory.mktemp("router"))
        started.child.start()
        started.wait_ready()

        def forward(bootstrap: dict[str, Any]) -> None:
            be_patient(bootstrap)
            rules = ext_proc_filter(bootstrap)["forward_rules"]
            rules["allowed_headers"]["patterns"].append({"exact": cls.HEADER})

        client = start_fleet(started.port, forward)
        wait_until(lambda: client.envoy.healthy_endpoints("extproc") == 1)
        yield client
        started.child.kill()

    @pytest.mark.parametrize(
        "body",
        [
            pytest.param(b"not JSON", id="unreadable"),
            pytest.param(chat(None, "A" * (2 * MIB)), id="too large"),
            pytest.param(gzip.compress(b"{}"), id="compressed"),
            pytest.param(chat("llama-3.1-8b", LONG), id="another in the body"),
        ],
    )
    def test_it_decides_whatever_the_body_is(self, body: bytes, fleet: Client) -> None:
        headers = {self.HEADER: "qwen3-32b"}
        if body[:2] == b"\x1f\x8b":
            headers["content-encoding"] = "gzip"

        response = fleet.post(PATH, body, headers)

        assert (response.status, pool_of(response)) == (200, "qwen-long")

    def test_a_body_that_is_read_is_routed_by_its_size(self, fleet: Client) -> None:
        headers = {self.HEADER: "support-v2"}
        assert pool_of(fleet.post(PATH, chat("m"), headers)) == "llama-short"

    def test_without_it_the_body_names_the_model(self, fleet: Client) -> None:
        assert pool_of(fleet.post(PATH, chat("qwen3-32b"))) == "qwen-short"
