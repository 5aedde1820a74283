"""Filter configurations in which the router cannot change the body mode."""

from typing import Any

import pytest

from extproc.demo.stack.envoy_config import connection_manager, ext_proc_filter

pytestmark = [pytest.mark.e2e, pytest.mark.xdist_group("e2e")]

LONG_TEXT = "all the words of a long story " * 3000
LARGE_TEXT = "internationalization " * 15_000


def buffered(config: dict[str, Any]) -> None:
    """Make Envoy always send the request body."""
    ext_proc = ext_proc_filter(config)
    ext_proc["processing_mode"]["request_body_mode"] = "BUFFERED"
    ext_proc["allow_mode_override"] = False


def buffered_with_response(config: dict[str, Any]) -> None:
    """Make Envoy always send the request body and whole responses."""
    buffered(config)
    ext_proc_filter(config)["processing_mode"] |= {
        "response_header_mode": "SEND",
        "response_body_mode": "BUFFERED",
    }


def buffered_with_streamed_response(config: dict[str, Any]) -> None:
    buffered(config)
    ext_proc_filter(config)["processing_mode"] |= {
        "response_header_mode": "SEND",
        "response_body_mode": "STREAMED",
    }


def full_duplex(config: dict[str, Any]) -> None:
    """Make the body pass through the router, as GKE does."""
    ext_proc = ext_proc_filter(config)
    ext_proc["processing_mode"] |= {
        "request_body_mode": "FULL_DUPLEX_STREAMED",
        "request_trailer_mode": "SEND",
    }
    ext_proc["allow_mode_override"] = False
    # The router cannot fail open after it has received the body, so Envoy requires this
    # setting.
    ext_proc["failure_mode_allow"] = False


def full_duplex_both_ways(config: dict[str, Any]) -> None:
    full_duplex(config)
    ext_proc_filter(config)["processing_mode"] |= {
        "response_header_mode": "SEND",
        "response_body_mode": "FULL_DUPLEX_STREAMED",
        "response_trailer_mode": "SEND",
    }


ROUTING = [
    buffered,
    buffered_with_response,
    buffered_with_streamed_response,
    full_duplex,
    full_duplex_both_ways,
]


@pytest.fixture(scope="module", params=ROUTING, ids=lambda change: change.__name__)
def variant(request: pytest.FixtureRequest, start_session_envoy: Any) -> Any:
    return start_session_envoy(request.param)


def test_the_right_pool_answers(variant: Any) -> None:
    assert variant.chat("Hello").served_by == "vllm_short"
    assert variant.chat(LONG_TEXT).served_by == "vllm_long"


def test_a_large_body_arrives_whole(variant: Any, client: Any) -> None:
    """For 300 kB in many messages, the backend counts as many tokens as by default."""
    text = LARGE_TEXT
    usage = variant.chat(text).json()["usage"]
    assert usage["prompt_tokens"] == client.chat(text).json()["usage"]["prompt_tokens"]


def test_a_body_beyond_the_cap_arrives_whole(variant: Any, client: Any) -> None:
    padding = b" " * (3 << 20)
    raw = (
        b'{"model": "m",'
        + padding
        + b'"max_tokens": 4, "messages": [{"role": "user", "content": "Hello"}]}'
    )
    response = variant.post("/v1/chat/completions", raw)
    assert (response.status, response.served_by) == (200, "vllm_long")


def test_a_stream_arrives(variant: Any) -> None:
    response = variant.chat(
        "Hello", stream=True, stream_options={"include_usage": True}
    )
    assert response.served_by == "vllm_short"
    assert response.body.endswith(b"data: [DONE]\n\n")
    assert response.body.count(b"data: ") == 7


def test_an_overflow_or_a_refusal_arrives(variant: Any) -> None:
    assert variant.chat("Hello", max_tokens=0).status == 400
    assert variant.post("/v1/chat/completions", b"not JSON").status == 400


def test_bodiless_and_foreign_requests_pass(variant: Any) -> None:
    assert variant.request("GET", "/v1/chat/completions").status == 405
    assert variant.post("/v1/unknown", {"a": 1}).status == 404
    assert variant.post("/v1/chat/completions", b"").status == 400


def test_a_chunked_body_arrives(variant: Any) -> None:
    raw = b'{"model": "m", "max_tokens": 4, "messages": [{"role": "user", "content": "Hello"}]}'
    response = variant.post("/v1/chat/completions", iter([raw[:20], raw[20:]]))
    assert response.status == 200
    assert response.json()["usage"]["prompt_tokens"] == 4


def test_a_chunked_body_with_trailers_arrives(variant: Any) -> None:
    raw = b'{"model": "m", "max_tokens": 4, "messages": [{"role": "user", "content": "Hello"}]}'
    head = b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\ntrailer: x-sum\r\nconnection: close\r\n\r\n"
    answer = variant.raw(head + b"%x\r\n%s\r\n0\r\nx-sum: 1\r\n\r\n" % (len(raw), raw))
    assert answer.startswith(b"HTTP/1.1 200")


class TestStreamed:
    """A STREAMED request body arrives after Envoy has sent the headers on, so the
    request passes unrouted.
    """

    @pytest.fixture(scope="class")
    @classmethod
    def streamed(cls, start_session_envoy: Any) -> Any:
        def change(config: dict[str, Any]) -> None:
            ext_proc = ext_proc_filter(config)
            ext_proc["processing_mode"]["request_body_mode"] = "STREAMED"
            ext_proc["allow_mode_override"] = False

        return start_session_envoy(change)

    @pytest.mark.parametrize(
        "text", ["Hello", LONG_TEXT, LARGE_TEXT], ids=["short", "long", "300 kB"]
    )
    def test_every_request_is_answered(
        self, text: str, streamed: Any, client: Any
    ) -> None:
        response = streamed.chat(text)
        assert response.status == 200
        assert (
            response.json()["usage"]["prompt_tokens"]
            == client.chat(text).json()["usage"]["prompt_tokens"]
        )


class TestOverTheLimit:
    """Envoy always buffers, but clients send more than its limit and get status 413."""

    @pytest.fixture(scope="class")
    @classmethod
    def limited(cls, start_session_envoy: Any) -> Any:
        def change(config: dict[str, Any]) -> None:
            buffered(config)
            ext_proc_filter(config)["processing_mode"]["response_header_mode"] = "SEND"
            listener = config["static_resources"]["listeners"][0]
            listener["per_connection_buffer_limit_bytes"] = 32_768
            manager = connection_manager(listener)
            manager["route_config"]["virtual_hosts"][0]["request_body_buffer_limit"] = (
                100_000
            )

        return start_session_envoy(change)

    def test_a_413_reaches_the_client_and_the_next_request_its_pool(
        self, limited: Any
    ) -> None:
        assert limited.chat(LARGE_TEXT).status == 413
        assert limited.chat("Hello").served_by == "vllm_short"

    def test_a_body_of_unknown_length_is_refused_or_passes(self, limited: Any) -> None:
        """The router does not request the body, but Envoy may exceed its buffer limit."""
        response = limited.post("/v1/chat/completions", iter([b"[" * 60_000] * 4))
        assert response.status in (400, 413)
        assert limited.chat("Hello").served_by == "vllm_short"


def test_the_server_saw_no_broken_protocol(admin: Any) -> None:
    """This last test of the module shows that the router accepted all messages."""
    assert admin.metric("extproc_protocol_errors_total") == 0
