import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from extproc.exchange.openai import ask_for_usage

ASKED = {"include_usage": True}
TEXT = st.text(st.sampled_from('ab"\\{}é\n'), max_size=9)


@pytest.mark.parametrize("end", ["", " ", "\n", "\r\n\t "])
def test_only_the_option_is_added(end: str) -> None:
    body = ('{"prompt" : "Hi" , "stream":true }' + end).encode()

    asking = ask_for_usage(body)

    assert asking is not None
    assert asking.startswith(b'{"prompt" : "Hi" , "stream":true ')
    assert json.loads(asking) == {**json.loads(body), "stream_options": ASKED}


@settings(max_examples=50)
@given(st.dictionaries(TEXT, st.integers() | TEXT, min_size=1, max_size=4))
def test_any_object_stays_one(body: dict[str, int | str]) -> None:
    asking = ask_for_usage(json.dumps(body).encode())

    assert asking is not None
    assert json.loads(asking) == {**body, "stream_options": ASKED}


@pytest.mark.parametrize(
    "body",
    [
        b'{"prompt": "Hi", "stream_options": null}',
        b'{"stream_options": {"include_usage": false}}',
        b'{"prompt": "what is", "x": {"stream_options": 1}}',
        b'["Hi"]',
        b"",
    ],
)
def test_what_names_the_option_or_is_no_object_is_left_alone(body: bytes) -> None:
    assert ask_for_usage(body) is None
