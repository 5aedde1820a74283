"""The formats of operators' logs and public traces, each from a small file."""

import json
import math
from itertools import pairwise

import pytest

from extproc.fleet.usage_log import (
    Records,
    TraceFormatError,
    few_records,
    read_records,
)
from extproc.fleet.workload import Recorded

from .log_formats import (
    AIPERF,
    ANTHROPIC,
    AZURE_2023,
    AZURE_2024,
    BAILIAN,
    BURSTGPT,
    BURSTGPT_SESSIONS,
    ENVOY,
    ETALON,
    FORMATS,
    LITELLM_CSV,
    LITELLM_LOG,
    LLM_SERVING_SIM,
    MOONCAKE,
    OPENAI,
    OTEL_FLAT,
    OWN_RECORDING,
    SERVEGEN,
    VIDUR,
    VLLM_BENCH,
    guidellm_benchmark,
    jsonl,
)


def read(text: str) -> Records:
    return read_records(text.splitlines(keepends=True), "log")


def counts(text: str) -> list[tuple[int, int]]:
    lengths = read(text).workload.lengths
    assert isinstance(lengths, Recorded)
    return list(zip(lengths.prompts.tolist(), lengths.outputs.tolist(), strict=True))


def arrivals(text: str) -> list[float]:
    found = read(text).workload.arrivals
    assert found is not None
    return [round(float(instant), 6) for instant in found]


def cached(text: str) -> list[int]:
    found = read(text).workload.cached_tokens
    assert found is not None
    return list(found.tolist())


@pytest.mark.parametrize("name", FORMATS)
def test_formats_are_read_as_they_are(name: str) -> None:
    text, expected, second = FORMATS[name]
    assert counts(text) == expected
    if second is None:
        assert read(text).workload.arrivals is None
    else:
        assert arrivals(text) == pytest.approx([0, second], abs=2e-6)


@pytest.mark.parametrize("name", FORMATS)
def test_a_byte_order_mark_and_windows_line_ends_change_nothing(name: str) -> None:
    text, expected, _ = FORMATS[name]
    assert counts("\ufeff" + text.replace("\n", "\r\n")) == expected


CSV_FORMATS = (
    AZURE_2023,
    AZURE_2024,
    BURSTGPT,
    BURSTGPT_SESSIONS,
    VIDUR,
    ETALON,
    SERVEGEN,
)


def cells(text: str) -> list[list[str]]:
    return [line.split(",") for line in text.splitlines()]


@pytest.mark.parametrize("text", CSV_FORMATS)
@pytest.mark.parametrize("delimiter", [";", "\t", "|"])
def test_csv_has_any_delimiter_order_case_and_extra_columns(
    text: str, delimiter: str
) -> None:
    changed = "\n".join(
        delimiter.join(
            [f" {cell.upper()} " if row == 0 else cell for cell in reversed(line)]
            + ["extra"]
        )
        for row, line in enumerate(cells(text))
    )
    assert counts(changed) == counts(text)
    if read(text).workload.arrivals is not None:
        assert arrivals(changed) == arrivals(text)


JSON_LINES = (
    MOONCAKE,
    BAILIAN,
    LLM_SERVING_SIM,
    LITELLM_LOG,
    OPENAI,
    ANTHROPIC,
    OTEL_FLAT,
    OWN_RECORDING,
    ENVOY,
    AIPERF,
)


@pytest.mark.parametrize("text", JSON_LINES)
def test_json_lines_may_be_an_array_or_printed_over_several_lines(text: str) -> None:
    records = [json.loads(line) for line in text.splitlines()]
    shapes = (
        json.dumps(records),
        json.dumps(records, indent=2),
        "\n".join(json.dumps(record, indent=2) for record in records),
        ",\n".join(json.dumps(record, indent=2) for record in records),
        json.dumps({"object": "list", "data": records}),
        json.dumps({"hits": {"hits": [{"_source": record} for record in records]}}),
        jsonl(*({"result": 1, "payload": record} for record in records)),
    )
    for shape in shapes:
        assert counts(shape) == counts(text)


@pytest.mark.parametrize(
    ("cell", "tokens"),
    [
        ("1,234", 1234),
        ("1.234", 1234),
        ("1 234", 1234),
        ("1'234", 1234),
        ("1_234", 1234),
        ("1\u202f234", 1234),
        ("12,345,678", 12_345_678),
        ("1,234.0", 1234),
        ("1.234,00", 1234),
        (" 7.0 ", 7),
        ("7,0", 7),
        ("1e3", 1000),
    ],
)
def test_thousands_and_decimals_of_a_spreadsheet(cell: str, tokens: int) -> None:
    assert counts(f'prompt_tokens,completion_tokens\n"{cell}",3\n') == [(tokens, 3)]
    assert counts(f"prompt_tokens;completion_tokens\n{cell};3\n") == [(tokens, 3)]


def test_spreadsheets_may_begin_with_their_delimiter_or_a_comment() -> None:
    body = "prompt_tokens;completion_tokens\n7;3\n"
    assert counts("sep=;\n" + body) == counts("# exported\n\n" + body) == [(7, 3)]


def test_rows_without_their_last_fields_are_skipped_and_counted() -> None:
    records = read("prompt_tokens,completion_tokens\n7,3\n9\n7,NaN\n,4\n7,-\n")
    assert (records.read, records.skipped) == (5, 4)


def test_flattened_columns_go_by_what_follows_their_usage() -> None:
    header = (
        "id,response.usage.prompt_tokens,response.usage.completion_tokens,"
        "response.usage.prompt_tokens_details.cached_tokens"
    )
    assert counts(f"{header}\na,7,3,4\n") == [(7, 3)]
    assert cached(f"{header}\na,7,3,4\n") == [4]


def test_cached_tokens_are_kept_and_never_more_than_the_prompt() -> None:
    assert cached(OPENAI) == [256, 0]
    assert cached(ANTHROPIC) == [90_000, 0]
    assert cached(LITELLM_CSV) == [128, 0]
    assert cached(OTEL_FLAT) == [100, 0]
    too_many = {"prompt_tokens": 5, "completion_tokens": 1, "cached_tokens": 9}
    assert cached(jsonl(too_many)) == [5]
    assert read(VIDUR).workload.cached_tokens is None


def test_an_instrumentation_that_leaves_cached_tokens_out_is_added_up() -> None:
    attributes = {
        "gen_ai.usage.input_tokens": 10,
        "gen_ai.usage.output_tokens": 3,
        "gen_ai.usage.cache_read.input_tokens": 900,
    }
    assert counts(jsonl({"attributes": attributes})) == [(910, 3)]


def test_hashes_are_kept_with_the_size_of_their_blocks() -> None:
    mooncake, bailian = read(MOONCAKE).workload, read(BAILIAN).workload
    assert mooncake.hash_ids == (tuple(range(46, 60)), (46, *range(71, 83)))
    assert (mooncake.hash_block_tokens, bailian.hash_block_tokens) == (512, 16)
    assert bailian.hash_ids == ((1089, 1090, 1091), (1089, 1090, 7))
    vidur = VIDUR.replace("pd_ratio", "block_hash_ids").replace("8.5", "11|22")
    assert read(vidur.replace("3.6", "11")).workload.hash_ids == ((11, 22), (11,))


def test_sessions_are_columns_or_chains_of_requests() -> None:
    assert read(BAILIAN).workload.sessions == ("55", "55")
    assert read(BURSTGPT_SESSIONS).workload.sessions == ("1722ac82", "d5983bf9")
    assert read(VIDUR).workload.sessions is None


def test_whole_numbers_of_bailian_are_milliseconds() -> None:
    in_ms = BAILIAN.replace("61.114", "61114").replace("62.5", "62500")
    assert arrivals(in_ms) == arrivals(BAILIAN)


@pytest.mark.parametrize(
    ("column", "first", "second", "gap_s"),
    [
        ("timestamp", "1767323045", "1767323046", 1),
        ("timestamp", "1767323045000", "1767323046500", 1.5),
        ("ts", "1767323045000000", "1767323046500000", 1.5),
        ("time", "1767323045000000000", "1767323046500000000", 1.5),
        ("arrival_time_ms", "100", "350", 0.25),
        ("startTimeUnixNano", "100", "500000100", 0.5),
        ("start_time_us", "0", "500000", 0.5),
        ("t", "0.5", "0.75", 0.25),
        ("Start Time", "2026/01/02 03:04:05 UTC", "2026/01/02 03:04:06", 1),
        ("time", "02/Jan/2026:03:04:05 +0000", "02/Jan/2026:04:04:06 +0100", 1),
        ("time", "Fri, 02 Jan 2026 03:04:05 GMT", "Fri, 02 Jan 2026 03:04:06 GMT", 1),
        ("arrival_time", "0,5", "1,25", 0.75),
    ],
)
def test_instants_have_the_unit_of_their_column_or_size(
    column: str, first: str, second: str, gap_s: float
) -> None:
    text = f"{column}|prompt_tokens|completion_tokens\n{first}|7|3\n{second}|8|4\n"
    assert arrivals(text) == [0, gap_s]


def test_arrivals_increase_and_lengths_go_with_them() -> None:
    text = "time,prompt_tokens,output_tokens\n3,30,1\n1,10,1\n2,20,1\n"
    assert arrivals(text) == [0, 1, 2]
    assert counts(text) == [(10, 1), (20, 1), (30, 1)]
    assert all(a <= b for a, b in pairwise(arrivals(text)))


def test_the_arrival_is_preferred_to_other_instants() -> None:
    text = "created,arrival_time,end_time,prompt_tokens,output_tokens\n"
    assert arrivals(text + "9,1,20,7,3\n9,3,20,7,3\n") == [0, 2]


@pytest.mark.parametrize(
    ("text", "note"),
    [
        (ETALON, "2 records are few"),
        (MOONCAKE, "instants: milliseconds"),
        (
            "time,prompt_tokens,output_tokens\n1,7,3\n,7,3\n",
            "1 of 2 records have no instant",
        ),
        (
            "time,prompt_tokens,output_tokens\n1,7,3\n2026-01-01,7,3\n",
            "instants in more than one unit",
        ),
        (
            json.dumps({"benchmarks": [guidellm_benchmark(1), guidellm_benchmark(9)]}),
            "2 runs in one file",
        ),
        (VLLM_BENCH + "\n" + VLLM_BENCH + "\n", "2 runs in one file"),
    ],
)
def test_notes_say_what_an_operator_should_know(text: str, note: str) -> None:
    assert any(found.startswith(note) for found in read(text).notes)


def test_few_records_are_said_to_be_few() -> None:
    assert few_records(1000) is None
    assert few_records(300) == (
        "300 records are few: 3 of them lie beyond a P99, they carry P97 at most; "
        "expected at least 1,000"
    )
    assert "not even a median" in str(few_records(3))
    enough = "prompt_tokens,completion_tokens\n" + "7,3\n" * 1000
    assert not any("few" in note for note in read(enough).notes)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "",
            "log: empty; expected CSV with a header, JSON lines or a JSON document",
        ),
        (
            "a,b\n1,2\n",
            r"log: columns a, b; expected prompt tokens \(prompt_tokens, .* and output "
            r"tokens \(completion_tokens, ",
        ),
        (
            "when;Request tokens;answer\n1;2;3\n",
            r"log: columns when, Request tokens, answer; expected output tokens",
        ),
        (
            "prompt_tokens,output_tokens\nx,2\n",
            "log: line 2: 'x'; expected a token count",
        ),
        (
            "prompt_tokens,output_tokens\n7,2\n-1,2\n",
            "line 3: '-1'; expected a token count >= 0",
        ),
        (
            '{"a": 1, "usage": {"in": 2}}\n',
            "log: none of 1 records has both counts; found a, usage.in; expected prompt",
        ),
        ('{"a": 1}\n{"b', "log: line 2: not JSON"),
        ('[{"a": 1},\n{"b": }]', "log: line 2: not JSON"),
        ('{"a": 1}\n[1]', r"log: line 2: record 1: 1; expected an object"),
        ("[1, 2]", "log: line 1: record 1: 1; expected an object"),
        (
            "time,prompt_tokens,output_tokens\nnoon,1,2\n",
            "log: line 2: 'noon'; expected seconds or an ISO 8601 time",
        ),
        (
            '[2026-01-02T03:04:05.678Z] "POST /v1/chat HTTP/1.1" 200 - 1 2 3 -\n',
            "log: an Envoy access log as text, which has no token counts",
        ),
        (
            jsonl({"input_tokens": 7, "output_tokens": 3, "num_model_requests": 5}),
            "log: line 1: sums of 5 requests; expected one record a request",
        ),
        (
            json.dumps({"completed": 3, "total_input_tokens": 9, "duration": 1.0}),
            "none of 1 records has both counts; found completed, total_input_tokens",
        ),
        (
            jsonl({"input_length": 7, "output_length": 3, "hash_ids": ["x"]}),
            "expected whole numbers as hashes",
        ),
        ('a"b\n', 'columns a"b; expected'),
        ('prompt_tokens,output_tokens\n"7,2', "'7,2'; expected a token count"),
    ],
)
def test_what_cannot_be_read_is_named_with_its_line(text: str, message: str) -> None:
    with pytest.raises(TraceFormatError, match=message):
        read(text)


def test_a_number_without_end_is_no_count() -> None:
    with pytest.raises(TraceFormatError, match="expected a token count"):
        read('{"prompt_tokens": 1e999, "completion_tokens": 3}')
    assert math.isinf(json.loads("1e999"))
