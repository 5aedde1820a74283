"""What vLLM says of itself, and what only looks like it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from extproc.routing.pressure import EndpointLoad
from extproc.server.vllm import parse_max_model_len, parse_metrics

from .fake_vllm import METRICS


def test_metrics_of_several_engines_are_added_up():
    text = (
        b'vllm:num_requests_waiting{engine="0"} 2.0\n'
        b'vllm:num_requests_waiting{engine="1"} 3.0\n'
        b"vllm:num_requests_running 4\n"
        b'vllm:gpu_cache_usage_perc{engine="0"} 0.25\n'
        b'vllm:gpu_cache_usage_perc{engine="1"} 0.75\n'
    )
    assert parse_metrics(text) == EndpointLoad(5.0, 4.0, 0.5)


@pytest.mark.parametrize("value", [b"NaN", b"+Inf", b"-1", b"many"])
def test_values_that_are_no_counts_do_not_count(value):
    text = METRICS.encode().replace(b"{waiting}", value).replace(b"{usage}", b"0")
    assert parse_metrics(text) is None


@given(st.binary(max_size=300))
def test_any_answer_is_survived(body):
    parse_metrics(body)
    parse_metrics(b"vllm:num_requests_waiting " + body)
    parse_max_model_len(body)
    parse_max_model_len(b'{"data":[' + body + b"]}")
