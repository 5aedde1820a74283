"""Measure a live vLLM server and write a profile for `plan` and `simulate`.

Reads the server's /v1/models and /metrics, then sends completions of random token ids:
single prompts of several lengths to measure prefill, and batches of several sizes and
contexts to measure decoding. The fit is checked with two other loads, mixed lengths at
60 % and 150 % of the capacity, against the simulator's prediction.

Nothing else should use the server during the measurement. vLLM does not publish
max_num_seqs and max_num_batched_tokens: give the values it was started with.

  extproc profile http://127.0.0.1:8000 --max-num-seqs 64 --output my-gpu.json
  extproc plan --profile my-gpu.json --usd-per-gpu-hour 2 --rate 20
"""

from __future__ import annotations

import argparse
import asyncio
import json
import re
import sys
from pathlib import Path

import aiohttp

from extproc.commands.profile_server import ServerError, measure
from extproc.commands.text import plain_json
from extproc.fleet.hardware_profile import Check, Profile, verdict
from extproc.fleet.profile_fit import ProfileError
from extproc.server.pools.unanswered import reason


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("url", metavar="URL", help="address of the server, without /v1")
    parser.add_argument(
        "--model", help="model to measure (default: the first that the server lists)"
    )
    parser.add_argument(
        "--max-num-seqs",
        type=int,
        default=256,
        help="max_num_seqs of the server (default: %(default)s)",
    )
    parser.add_argument(
        "--max-num-batched-tokens", type=int, default=2048,
        help="max_num_batched_tokens of the server (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--gpus",
        type=int,
        default=1,
        help="GPUs of the server (default: %(default)s)",
    )
    parser.add_argument(
        "--usd-per-gpu-hour", type=float, help="price to record (default: none)"
    )
    parser.add_argument(
        "--largest-batch",
        type=int,
        default=32,
        help="largest batch to measure (default: %(default)s)",
    )
    parser.add_argument(
        "--tokens",
        type=int,
        default=48,
        help="tokens to generate in each batch (default: %(default)s)",
    )
    parser.add_argument(
        "--repeats",
        type=int,
        default=3,
        help="runs of each measurement (default: %(default)s)",
    )
    parser.add_argument(
        "--check-requests",
        type=int,
        default=60,
        help="requests of each check; 0 skips the checks (default: %(default)s)",
    )
    parser.add_argument(
        "--output",
        type=Path,
        default=Path("profile.json"),
        metavar="FILE",
        help="file to write (default: %(default)s)",
    )
    parser.add_argument("--api-key", help="API key, if the server requires one")
    parser.add_argument(
        "--seed", type=int, default=42, help="random seed (default: %(default)s)"
    )
    parser.add_argument(
        "--json", action="store_true", help="print the profile as well as write it"
    )


def run(args: argparse.Namespace) -> int:
    """Measure, fit and check a profile, and write it to a file."""
    for option in (
        "max_num_seqs",
        "max_num_batched_tokens",
        "gpus",
        "largest_batch",
        "repeats",
    ):
        if getattr(args, option) < 1:
            return _refuse(option, getattr(args, option), ">= 1")
    if args.tokens < 8:
        return _refuse("tokens", args.tokens, ">= 8")
    if args.check_requests < 0:
        return _refuse("check_requests", args.check_requests, ">= 0")
    if not re.match(r"https?://", args.url):
        return _refuse("url", args.url, "http:// or https://")
    if args.output.is_dir() or not args.output.parent.is_dir():
        return _refuse("output", args.output, "a file in an existing folder")
    try:
        profile = asyncio.run(measure(args))
    except (ServerError, ProfileError) as error:
        return _fail(args.url, str(error))
    except (aiohttp.ClientError, TimeoutError) as error:
        return _fail(args.url, reason(error))
    document = profile.to_document()
    args.output.write_text(json.dumps(document, indent=1) + "\n", "utf-8")
    if args.json:
        print(plain_json(document))
    else:
        _print(profile, args.output)
    return 0


def _fail(url: str, why: str) -> int:
    print(f"extproc profile: {url}: {why}", file=sys.stderr)
    return 1


def _refuse(option: str, value: object, accepted: str) -> int:
    name = option if option == "url" else f"--{option.replace('_', '-')}"
    print(f"extproc profile: {name}: {value}; expected {accepted}", file=sys.stderr)
    return 2


def _print(profile: Profile, output: Path) -> None:
    step = profile.step_time
    print(
        f"{profile.model}: {profile.num_blocks} blocks of {profile.block_size} tokens, "
        f"max_model_len {profile.max_model_len}\n"
        f"a step takes {1e3 * step.base_s:.3f} ms, {1e6 * step.seq_s:.1f} us a "
        f"sequence, {1e6 * step.token_s:.2f} us a prompt token, "
        f"{1e9 * step.context_s:.2f} ns a token of context; a request "
        f"{1e3 * profile.request_s:.1f} ms beside its steps\n"
        f"error on its own samples {profile.measured.fit_error:.1%}"
    )
    for check in (profile.measured.ordinary_check, profile.measured.check):
        if check is not None:
            _print_check(check)
    print(verdict(profile))
    print(f"written to {output}")


def _print_check(check: Check) -> None:
    measured, predicted = check.measured, check.predicted
    print(
        f"at {check.load:.0%} of its capacity, {check.requests} requests: throughput "
        f"{measured.requests_per_s:.2f} measured, "
        f"{predicted.requests_per_s:.2f} predicted ({check.throughput_error:+.1%}); "
        f"preemptions {check.preemptions_measured}, {check.preemptions_predicted}"
    )
    titles = ("mean_ttft_s", "p50_ttft_s", "p90_ttft_s", "p50_tpot_s", "p90_tpot_s")
    for name, error in check.errors().items():
        if name in titles:
            print(
                f"  {name:12} {getattr(measured, name):.4f} measured, "
                f"{getattr(predicted, name):.4f} predicted ({error:+.1%})"
            )
