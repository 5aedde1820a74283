"""Small files of each format of logs and traces, with two requests in order."""

import json


def jsonl(*records: object) -> str:
    return "".join(json.dumps(record) + "\n" for record in records)


# Each format is (text, counts, arrivals or None) and contains two requests in order.
AZURE_2023 = """TIMESTAMP,ContextTokens,GeneratedTokens
2023-11-16 18:15:46.6805900,374,44
2023-11-16 18:15:50.9951690,396,109
"""
AZURE_2024 = """TIMESTAMP,ContextTokens,GeneratedTokens
2024-05-10 00:00:00.009930+00:00,374,44
2024-05-10 00:00:00.269000+00:00,396,109
"""
BURSTGPT = """Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type
5,ChatGPT,472,18,490,Conversation log
45,ChatGPT,1087,230,1317,API log
118,GPT-4,417,0,417,API log
"""
BURSTGPT_SESSIONS = """Timestamp,Session ID,Elapsed time,Model,Request tokens,Response tokens,Total tokens,Log Type
19440110.0,1722ac82,43,GPT-4,906,446,1352,Conversation log
19440161.0,d5983bf9,2,ChatGPT,36,29,65,Conversation log
"""
VIDUR = """arrived_at,num_prefill_tokens,num_decode_tokens,num_total_tokens,pd_ratio
0.25,374,44,418,8.5
4.5,396,109,505,3.6
"""
ETALON = """num_prefill_tokens,num_decode_tokens
374,44
396,109
"""
SERVEGEN = """request_id,t_s,input_tokens,output_tokens
0,0.5,374,44
1,2.75,396,109
"""
LLM_SERVING_SIM = jsonl(
    {"input_toks": 374, "output_toks": 44, "arrival_time_ns": 0},
    {"input_toks": 396, "output_toks": 109, "arrival_time_ns": 1_500_000_000},
)
MOONCAKE = jsonl(
    {
        "timestamp": 27482,
        "input_length": 6955,
        "output_length": 52,
        "hash_ids": [*range(46, 60)],
    },
    {
        "timestamp": 30535,
        "input_length": 6472,
        "output_length": 26,
        "hash_ids": [46, *range(71, 83)],
    },
)
BAILIAN = jsonl(
    {
        "chat_id": 55,
        "parent_chat_id": -1,
        "timestamp": 61.114,
        "input_length": 40,
        "output_length": 132,
        "type": "text",
        "turn": 1,
        "hash_ids": [1089, 1090, 1091],
    },
    {
        "chat_id": 159,
        "parent_chat_id": 55,
        "timestamp": 62.5,
        "input_length": 48,
        "output_length": 10,
        "type": "text",
        "turn": 2,
        "hash_ids": [1089, 1090, 7],
    },
)
VLLM_BENCH = json.dumps(
    {
        "date": "20261101-120000",
        "request_rate": 2.0,
        "completed": 2,
        "input_lens": [374, 396, 12],
        "output_lens": [44, 109, 0],
        "ttfts": [0.1, 0.2, 0.0],
        "itls": [[0.01], [0.02, 0.03], []],
        "start_times": [1005.5, 1006.25, 1007.0],
        "errors": ["", "", "Timeout"],
    }
)


def guidellm_benchmark(start: float) -> dict[str, object]:
    requests = [
        {
            "request_id": "a",
            "request_start_time": start,
            "prompt_tokens": 374,
            "output_tokens": 44,
            "info": {"timings": {"request_start": start, "request_end": start + 9}},
            "input_metrics": {"text_tokens": 374},
        },
        {
            "request_id": "b",
            "request_start_time": start + 0.75,
            "prompt_tokens": 396,
            "output_tokens": 109,
        },
    ]
    cut = {"request_start_time": start, "prompt_tokens": 5, "output_tokens": 1}
    return {
        "config": {"data": {"prompt_tokens": 1, "output_tokens": 1}},
        "requests": {"successful": requests, "incomplete": [cut], "errored": []},
        "metrics": {"prompt_token_count": {"successful": {"mean": 385.0}}},
    }


GUIDELLM = json.dumps(
    {"metadata": {"version": 1}, "benchmarks": [guidellm_benchmark(1.7e9)]}, indent=2
)
LITELLM_CSV = """request_id,call_type,spend,total_tokens,prompt_tokens,completion_tokens,startTime,endTime,model,metadata
a,acompletion,0.01,418,374,44,2026-01-02 03:04:05.678,2026-01-02 03:04:09,m,"{""usage_object"": {""prompt_tokens_details"": {""cached_tokens"": 128}}}"
b,acompletion,0.01,505,396,109,2026-01-02 03:04:07.178,2026-01-02 03:04:30,m,{}
c,acompletion,0,0,0,0,2026-01-02 03:04:08,2026-01-02 03:04:08,m,{}
"""
LITELLM_LOG = jsonl(
    {
        "id": "a",
        "status": "success",
        "startTime": 1767323045.5,
        "endTime": 1767323049.0,
        "completionStartTime": 1767323046.0,
        "prompt_tokens": 374,
        "completion_tokens": 44,
        "response": {"usage": {"prompt_tokens": 374, "completion_tokens": 44}},
    },
    {
        "id": "b",
        "status": "success",
        "startTime": 1767323047.0,
        "prompt_tokens": 396,
        "completion_tokens": 109,
    },
)
OPENAI = jsonl(
    {
        "object": "chat.completion",
        "created": 1767323045,
        "choices": [{"index": 0, "message": {"content": "hi"}}],
        "usage": {
            "prompt_tokens": 374,
            "completion_tokens": 44,
            "prompt_tokens_details": {"cached_tokens": 256},
        },
    },
    {
        "object": "response",
        "created_at": 1767323047,
        "usage": {
            "input_tokens": 396,
            "input_tokens_details": {"cached_tokens": 0},
            "output_tokens": 109,
        },
    },
)
ANTHROPIC = jsonl(
    {
        "type": "message",
        "usage": {
            "input_tokens": 10,
            "cache_read_input_tokens": 90_000,
            "cache_creation_input_tokens": 500,
            "output_tokens": 44,
        },
    },
    {"type": "message", "usage": {"input_tokens": 396, "output_tokens": 109}},
)
OTEL_FLAT = jsonl(
    {
        "name": "chat m",
        "start_time": "2026-01-02T03:04:05.000Z",
        "end_time": "2026-01-02T03:04:09.000Z",
        "attributes": {
            "gen_ai.usage.input_tokens": 374,
            "gen_ai.usage.output_tokens": 44,
            "gen_ai.usage.cache_read.input_tokens": 100,
        },
    },
    {
        "name": "chat m",
        "start_time": "2026-01-02T03:04:06.500Z",
        "attributes": {
            "gen_ai.usage.input_tokens": 396,
            "gen_ai.usage.output_tokens": 109,
        },
    },
    {"name": "GET /", "start_time": "2026-01-02T03:04:07Z", "attributes": {}},
)


def otlp_span(nanos: int, prompt: int, output: int) -> dict[str, object]:
    return {
        "startTimeUnixNano": str(nanos),
        "endTimeUnixNano": str(nanos + 10**9),
        "attributes": [
            {"key": "gen_ai.usage.input_tokens", "value": {"intValue": str(prompt)}},
            {"key": "gen_ai.usage.output_tokens", "value": {"intValue": str(output)}},
        ],
    }


OTLP = json.dumps(
    {
        "resourceSpans": [
            {
                "resource": {"attributes": []},
                "scopeSpans": [
                    {
                        "spans": [
                            otlp_span(1_767_323_045_000_000_000, 374, 44),
                            otlp_span(1_767_323_046_500_000_000, 396, 109),
                        ]
                    }
                ],
            }
        ]
    }
)
OWN_RECORDING = jsonl(
    {
        "time": 1767323045.5,
        "status": 200,
        "usage": {"prompt_tokens": 374, "completion_tokens": 44},
        "decision": {"pool": "short", "prompt_tokens": 9, "output_tokens": 99},
    },
    {
        "time": 1767323047.0,
        "status": 200,
        "usage": {"prompt_tokens": 396, "completion_tokens": 109},
        "decision": {"pool": "short", "prompt_tokens": 9, "output_tokens": 99},
    },
    {
        "time": 1767323048.0,
        "status": 503,
        "usage": {"prompt_tokens": None, "completion_tokens": None},
        "decision": {"pool": "short", "prompt_tokens": 9, "output_tokens": 99},
    },
)
ENVOY = jsonl(
    *(
        {
            "start_time": start,
            "response_code": 200,
            "metadata": {
                "extproc.token_budget": {"prompt_tokens": 9, "output_tokens": 9},
                "llm.usage": {"prompt_tokens": prompt, "completion_tokens": output},
            },
        }
        for start, prompt, output in (
            ("2026-01-02T03:04:05.678Z", "374", "44"),
            ("2026-01-02T03:04:07.678Z", 396.0, 109.0),
        )
    )
)
AIPERF = jsonl(
    *(
        {
            "metadata": {"request_start_ns": nanos, "session_num": 1},
            "metrics": {
                "input_sequence_length": {"value": prompt, "unit": "tokens"},
                "output_sequence_length": {"value": output, "unit": "tokens"},
            },
        }
        for nanos, prompt, output in (
            (1_767_323_045_000_000_000, 374, 44),
            (1_767_323_045_250_000_000, 396, 109),
        )
    )
)

USUAL = [(374, 44), (396, 109)]
FORMATS = {
    "Azure 2023": (AZURE_2023, USUAL, 4.314579),
    "Azure 2024": (AZURE_2024, USUAL, 0.25907),
    "BurstGPT": (BURSTGPT, [(472, 18), (1087, 230)], 40),
    "BurstGPT with sessions": (BURSTGPT_SESSIONS, [(906, 446), (36, 29)], 51),
    "Vidur": (VIDUR, USUAL, 4.25),
    "etalon": (ETALON, USUAL, None),
    "ServeGen": (SERVEGEN, USUAL, 2.25),
    "LLMServingSim": (LLM_SERVING_SIM, USUAL, 1.5),
    "Mooncake": (MOONCAKE, [(6955, 52), (6472, 26)], 3.053),
    "Bailian": (BAILIAN, [(40, 132), (48, 10)], 1.386),
    "vLLM bench": (VLLM_BENCH, USUAL, 0.75),
    "GuideLLM": (GUIDELLM, USUAL, 0.75),
    "LiteLLM spend": (LITELLM_CSV, USUAL, 1.5),
    "LiteLLM log": (LITELLM_LOG, USUAL, 1.5),
    "OpenAI": (OPENAI, USUAL, 2),
    "Anthropic": (ANTHROPIC, [(90_510, 44), (396, 109)], None),
    "OTel, flat": (OTEL_FLAT, USUAL, 1.5),
    "OTLP": (OTLP, USUAL, 1.5),
    "own recording": (OWN_RECORDING, USUAL, 1.5),
    "Envoy": (ENVOY, USUAL, 2),
    "AIPerf": (AIPERF, USUAL, 0.25),
}
