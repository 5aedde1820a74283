"""The overlay with inference pools, translated by Istio, with a picker for each pool."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from ..deploy.manifests import Manifest
from ..e2e.outside import Response
from ..e2e.unsized import send_chunked, send_http2
from ..patience import be_patient, wait_until
from .conftest import Picked, StartPicked
from .istio import refusals
from .picker import PICKER
from .traffic import (
    CONFIG,
    KIB,
    answered,
    chat,
    pieces,
    send_whole,
    send_whole_http2,
)

pytestmark = [pytest.mark.gateways, pytest.mark.xdist_group("gateways")]

MIB = KIB * KIB
OVERLAY = "inference-extension"


@pytest.fixture(scope="module")
def patient(kustomize: Any) -> list[Manifest]:
    manifests: list[Manifest] = copy.deepcopy(kustomize(OVERLAY))
    be_patient(manifests)
    return manifests


@pytest.fixture(scope="module")
def picked(patient: list[Manifest], start_picked: StartPicked) -> Iterator[Picked]:
    with start_picked(patient, CONFIG) as running:
        yield running


def by(response: Response) -> tuple[int, str | None, str | None]:
    return (*answered(response), response.headers.get(PICKER))


def test_every_object_is_accepted(
    picked: Picked, kustomize: Any, tmp_path: Any
) -> None:
    assert picked.system.gateway.complaints() == []
    assert refusals(kustomize(OVERLAY), tmp_path) == ""


@pytest.mark.parametrize(("words", "pool"), [(3, "short"), (40_000, "long")])
def test_the_pool_s_picker_gets_the_request(
    picked: Picked, words: int, pool: str
) -> None:
    client = picked.system.client
    body = chat(words)
    for send in (send_whole, send_chunked, send_http2):
        assert by(send(client, pieces(body))) == (200, pool, pool)
    assert picked.pickers[pool].pools[-3:] == [pool] * 3


def test_a_stream_passes_router_and_picker(picked: Picked) -> None:
    options = {"include_usage": True}
    response = picked.system.client.chat("Hello", stream=True, stream_options=options)
    assert by(response) == (200, "short", "short")
    assert response.body.rstrip().endswith(b"data: [DONE]")


@pytest.mark.parametrize("mib", [3, 5, 12, 20])
@pytest.mark.parametrize("send", [send_whole, send_whole_http2])
def test_large_bodies_pass_a_picker_that_accepts_4_mib_at_once(
    picked: Picked, mib: int, send: Callable[..., Response]
) -> None:
    response = send(picked.system.client, pieces(chat(3, mib * MIB)))
    assert by(response) == (200, "long", "long")


def test_of_large_bodies_without_a_length_at_most_three_are_lost(
    patient: list[Manifest], start_picked: StartPicked
) -> None:
    """Envoy would hold a body that the router requests to its end, whatever its size.

    The router learns from three lost bodies to request none without a length.
    """
    with start_picked(patient, CONFIG) as picked:
        client = picked.system.client
        statuses = [
            send(client, pieces(chat(3, mib * MIB))).status
            for mib in (3, 5, 12, 20)
            for send in (send_chunked, send_http2)
        ]
        assert set(statuses) <= {200, 413}
        assert statuses.count(413) <= 3


@pytest.mark.parametrize("send", [send_whole, send_chunked, send_http2])
def test_while_the_router_is_frozen_envoy_collects_less_than_a_picker_accepts(
    kustomize: Any, start_picked: StartPicked, send: Callable[..., Response]
) -> None:
    """Envoy holds the body until the router answers or `message_timeout` passes, and
    then sends the picker all of it as one message.
    """
    with start_picked(kustomize(OVERLAY), CONFIG) as picked:
        child = picked.system.router.child
        child.pause()
        try:
            response = send(picked.system.client, pieces(chat(3, 12 * MIB)))
        finally:
            child.resume()
        assert by(response) == (200, "long", "long")


def test_without_the_router_a_client_s_own_pool_does_not_count(
    patient: list[Manifest], start_picked: StartPicked
) -> None:
    with start_picked(patient, CONFIG) as picked:
        picked.system.router.child.kill()
        for _ in range(5):
            response = picked.system.client.chat("Hello", {"x-llm-pool": "short"})
            assert by(response) == (200, "long", "long")


def test_clients_load_no_adapters(picked: Picked) -> None:
    for path in (
        "/v1/load_lora_adapter",
        "/v1/unload_lora_adapter/",
        "/v1/x%2Fload_lora_adapter",
    ):
        response = picked.system.client.post(path, {"lora_name": "x"})
        assert response.status == 403
        assert "x-standin" not in response.headers


def test_a_picker_that_refuses_connections_costs_a_few_requests(
    patient: list[Manifest], start_picked: StartPicked
) -> None:
    """Istio then excludes it, and chooses a server itself."""
    with start_picked(patient, CONFIG) as picked:
        client = picked.system.client
        picked.pickers["short"].close()
        statuses: list[int] = []

        def recovered() -> bool:
            statuses.append(client.chat("Hello").status)
            return statuses[-5:] == [200] * 5

        wait_until(recovered)
        assert statuses.count(500) + statuses.count(200) == len(statuses)


def test_without_the_setting_of_istiod_every_request_fails(
    patient: list[Manifest], start_picked: StartPicked
) -> None:
    """The chart's notes and README name this setting for this status."""
    settings = {"ENABLE_GATEWAY_API_INFERENCE_EXTENSION": "false"}
    with start_picked(
        patient, CONFIG, settings=settings, ready=lambda response: True
    ) as picked:
        assert {picked.system.client.chat("Hello").status for _ in range(3)} == {500}
