"""Every shape of record that an operator may have."""

import json

import pytest

from extproc.fleet.usage_log import TraceFormatError, read_records

AZURE = """TIMESTAMP,ContextTokens,GeneratedTokens
2023-11-16 18:15:46.6805900,374,44
2023-11-16 18:15:50.9951690,396,109
"""
PLAIN = "time;no"
REPLAY = {
    "path": "/v1/chat/completions",
    "body": "{}",
    "usage": {"prompt_tokens": 7, "completion_tokens": 3},
    "time": 2.5,
}
ACCESS_LOG = {
    "start_time": "2026-01-02T03:04:05.678Z",
    "response_code": 200,
    "metadata": {
        "extproc.token_budget": {"pool": "short", "budget_tokens": 99},
        "usage": {"prompt_tokens": "7", "completion_tokens": "3"},
    },
}


def counts(text: str) -> list[tuple[int, int]]:
    workload = read_records(text.splitlines(), "log").workload
    lengths = workload.lengths
    return list(zip(lengths.prompts.tolist(), lengths.outputs.tolist(), strict=True))  # type: ignore[attr-defined]


def test_azures_own_format() -> None:
    records = read_records(AZURE.splitlines(), "azure.csv")
    assert counts(AZURE) == [(374, 44), (396, 109)]
    assert records.workload.arrivals is not None
    assert records.workload.arrivals.tolist() == pytest.approx([0, 4.314579], abs=1e-5)


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("prompt_tokens,completion_tokens\n7,3\n", id="plain"),
        pytest.param("\ufeffInput Tokens,Output Tokens\r\n7,3\r\n", id="spreadsheet"),
        pytest.param(
            "arrival_time,num_prompt_tokens,x,output-tokens\n1,7,,3\n", id="more"
        ),
        pytest.param('{"prompt_tokens": 7, "completion_tokens": 3}\n\n', id="jsonl"),
        pytest.param(json.dumps(REPLAY), id="replay log"),
        pytest.param(json.dumps(ACCESS_LOG), id="access log"),
    ],
)
def test_counts_go_by_many_names(text: str) -> None:
    assert counts(text) == [(7, 3)]


def test_records_without_usage_are_skipped_and_counted() -> None:
    lines = [
        json.dumps(REPLAY),
        json.dumps({**REPLAY, "usage": None}),
        json.dumps(REPLAY),
    ]
    records = read_records(lines, "log")
    assert (records.read, records.skipped) == (3, 1)


def test_without_times_there_are_no_arrivals() -> None:
    text = "prompt_tokens,completion_tokens\n7,3\n"
    assert read_records(text.splitlines(), "log").workload.arrivals is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "log: empty, expected CSV with a header or JSON lines"),
        ("a,b\n1,2\n", "log: columns a, b, expected one of prompttokens"),
        (
            "prompt_tokens,output_tokens\nx,2\n",
            "log: line 2: 'x', expected a token count",
        ),
        (
            "prompt_tokens,output_tokens\n-1,2\n",
            "line 2: '-1', expected a token count >= 0",
        ),
        ('{"a": 1}\n', "log: none of 1 records has prompt and output tokens"),
        ('{"a": 1}\n{"b', "log: line 2: not JSON"),
        ('{"a": 1}\n[1]', r"log: line 2: \[1\], expected an object"),
        (
            "time,prompt_tokens,output_tokens\nnoon,1,2\n",
            "log: line 2: 'noon', expected seconds or an ISO 8601 instant",
        ),
    ],
)
def test_what_cannot_be_read_is_named_with_its_line(text: str, message: str) -> None:
    with pytest.raises(TraceFormatError, match=message):
        read_records(text.splitlines(), "log")
