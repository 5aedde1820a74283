"""The hardware options of ``plan`` and ``simulate``: model, GPUs, limits, profile."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from extproc.commands.traffic_options import OptionError
from extproc.fleet.emit import Serving
from extproc.fleet.gpus import GPUS
from extproc.fleet.hardware import (
    GPU_MEMORY_UTILIZATION,
    BatchDefaults,
    Deployment,
    batch_defaults,
    fitting_tensor_parallel_size,
)
from extproc.fleet.hardware_profile import (
    Profile,
    warnings,
)
from extproc.fleet.model_config import read_model_config
from extproc.fleet.models import MODELS, Model, check_tensor_parallel_size
from extproc.fleet.profile_fit import (
    ProfileError,
)
from extproc.fleet.scheduler import SchedulerLimits
from extproc.fleet.sizing import Engine
from extproc.fleet.steptime import (
    PAPER_KV_TOKENS,
    PAPER_STEP_TIMES,
    Roofline,
    paper_step_time,
)

#: The papers' pools.
DEFAULT_THRESHOLD = 8192
DEFAULT_MAX_MODEL_LEN = 65_536
STEP_TIMES = ("roofline", "paper")
KV_CACHE_DTYPES = ("auto", "bfloat16", "fp8")


def add_hardware_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the hardware options."""
    group = parser.add_argument_group("hardware")
    group.add_argument(
        "--model",
        default="Llama-3-70B",
        metavar="NAME|PATH",
        help=f"{', '.join(MODELS)}; or a config.json or its directory "
        "(default: %(default)s)",
    )
    group.add_argument(
        "--gpu",
        choices=list(GPUS),
        default="A100-80GB",
        metavar="NAME",
        help=f"one of {', '.join(GPUS)} (default: %(default)s)",
    )
    group.add_argument(
        "--tensor-parallel-size",
        type=int,
        help="GPUs of an instance (default: the model's, or the fewest that fit it)",
    )
    group.add_argument(
        "--gpu-memory-utilization",
        type=float,
        default=GPU_MEMORY_UTILIZATION,
        help="share of each GPU's memory that vLLM uses (default: %(default)s)",
    )
    group.add_argument(
        "--kv-cache-dtype",
        choices=KV_CACHE_DTYPES,
        default="auto",
        help="data type of the KV cache; auto: that of the model's config.json, else "
        "16 bits (default: %(default)s)",
    )
    group.add_argument(
        "--step-time",
        choices=STEP_TIMES,
        default="roofline",
        help="step time model; paper: the papers' W + H n, with their 1,048,576 tokens "
        "of KV cache (default: %(default)s)",
    )
    group.add_argument(
        "--profile",
        metavar="FILE",
        help="output of `extproc profile`, in place of model, GPU and step time",
    )
    group.add_argument(
        "--max-model-len",
        type=int,
        help="max_model_len of the last pool (default: the profile's, else the smaller "
        f"of {DEFAULT_MAX_MODEL_LEN} and the model's)",
    )
    group.add_argument(
        "--max-num-batched-tokens",
        type=int,
        help="max_num_batched_tokens of every instance (default: the profile's, else "
        "the largest that keeps the TPOT promise)",
    )
    group.add_argument(
        "--enable-prefix-caching",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="reuse KV blocks of a common prefix (default: on, as in vLLM)",
    )
    group.add_argument(
        "--async-scheduling",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="schedule a step while the previous one runs (default: on, as in vLLM)",
    )


def read_engine(args: argparse.Namespace) -> Engine:
    """Return one instance, from a profile or from the built-in tables.

    Raises:
        OptionError: the profile cannot be read, or the model's weights do not fit.
    """
    return replace(
        _read_engine(args),
        enable_prefix_caching=args.enable_prefix_caching,
        async_scheduling=args.async_scheduling,
    )


def _read_engine(args: argparse.Namespace) -> Engine:
    if args.profile:
        return _profiled(args.profile, args.usd_per_gpu_hour)
    gpu = GPUS[args.gpu]
    usd = gpu.usd_per_hour if args.usd_per_gpu_hour is None else args.usd_per_gpu_hour
    if args.step_time == "paper":
        if args.gpu not in PAPER_STEP_TIMES:
            raise OptionError(
                f"--step-time: paper; expected --gpu {' or '.join(PAPER_STEP_TIMES)}"
            )
        return Engine(
            f"{args.gpu}, the papers' W + H n",
            paper_step_time(args.gpu),
            PAPER_KV_TOKENS // 16 + 1,
            16,
            1,
            usd,
        )
    deployment = read_deployment(args)
    model, gpus = deployment.model, deployment.tensor_parallel_size
    return Engine(
        f"{model.name} on {gpus} x {gpu.name}",
        Roofline(deployment),
        deployment.kv_tokens(args.max_model_len) // deployment.block_size,
        deployment.block_size,
        gpus,
        usd,
    )


def read_deployment(args: argparse.Namespace) -> Deployment:
    """Return the model and GPUs selected by the arguments, without a profile.

    Raises:
        OptionError: the model is unknown, the tensor-parallel size does not divide the
            model's heads, or the weights leave no room for a KV cache.
    """
    model, gpu = read_model(args.model, args.kv_cache_dtype), GPUS[args.gpu]
    share = args.gpu_memory_utilization
    if not 0 < share <= 1:
        raise OptionError(f"--gpu-memory-utilization: {share}; expected in (0, 1]")
    size = args.tensor_parallel_size
    if size is None:
        size = model.tensor_parallel_size
        if args.model not in MODELS:
            length = min(args.max_model_len, model.max_position_embeddings)
            found = fitting_tensor_parallel_size(model, gpu, share, length)
            size = found or gpu.gpus_per_node
    try:
        check_tensor_parallel_size(model, size)
    except ValueError as error:
        raise OptionError(f"--tensor-parallel-size: {error}") from error
    deployment = Deployment(
        model,
        gpu,
        size,
        share,
        getattr(args, "max_num_seqs", None),
        args.max_num_batched_tokens,
    )
    if deployment.kv_tokens(args.max_model_len) < 2 * deployment.block_size:
        raise OptionError(
            f"--tensor-parallel-size: {size}; expected more: {model.name} leaves no "
            f"room for a KV cache on {size} x {gpu.name}"
        )
    return deployment


def read_serving(args: argparse.Namespace) -> Serving:
    """Return the options that start an instance, for the command lines of a plan.

    Raises:
        OptionError: see :func:`read_deployment`.
    """
    return replace(
        _read_serving(args),
        enable_prefix_caching=args.enable_prefix_caching,
        async_scheduling=args.async_scheduling,
    )


def _read_serving(args: argparse.Namespace) -> Serving:
    if args.profile:
        profile = read_profile(args.profile)
        return Serving(profile.model)
    path = Path(args.model)
    model = None
    if path.exists():
        model = str(path.parent if path.name == "config.json" else path)
    if args.step_time == "paper":
        return Serving(model)
    return Serving(
        model,
        args.gpu_memory_utilization,
        args.kv_cache_dtype,
    )


def read_model(name: str, kv_cache_dtype: str = "auto") -> Model:
    """Return a model from the table, or from a ``config.json``.

    Raises:
        OptionError: the name is unknown, or the file does not describe a model.
    """
    if name in MODELS:
        model = MODELS[name]
        if kv_cache_dtype == "auto":
            return model
        return replace(model, kv_bytes=1.0 if kv_cache_dtype.startswith("fp8") else 2.0)
    path = Path(name)
    if path.is_dir():
        path = path / "config.json"
    if not path.is_file():
        raise OptionError(
            f"--model: {name}; expected one of {', '.join(MODELS)}, a config.json or "
            "its directory"
        )
    label = path.parent.resolve().name if path.name == "config.json" else path.stem
    try:
        document = json.loads(path.read_text("utf-8"))
        return read_model_config(document, label, kv_cache_dtype=kv_cache_dtype)
    except (OSError, ValueError) as error:
        raise OptionError(f"--model: {path}: {error}") from error


def complete_limits(args: argparse.Namespace) -> argparse.Namespace:
    """Return the arguments with defaults for missing limits.

    With a profile, the limits on window, sequences and batch default to those of the
    measured server. Without one, the window is 65,536 tokens or the model's maximum if
    that is smaller, and the number of sequences is vLLM's default for the GPU. The
    default threshold is reduced to half the window if that is smaller.

    Raises:
        OptionError: the profile or the model cannot be read.
    """
    profile = read_profile(args.profile) if args.profile else None
    window, batched = args.max_model_len, args.max_num_batched_tokens
    if window is None and profile:
        window = profile.max_model_len
    elif window is None:
        longest = read_model(args.model).max_position_embeddings
        window = min(DEFAULT_MAX_MODEL_LEN, longest)
    if batched is None and profile:
        batched = profile.max_num_batched_tokens
    seqs = args.max_num_seqs
    if seqs is None:
        seqs = read_batch_defaults(args).max_num_seqs
    complete = argparse.Namespace(**vars(args))
    complete.max_model_len, complete.max_num_batched_tokens = window, batched
    complete.max_num_seqs = seqs
    if "threshold" in vars(args) and not args.threshold:
        complete.threshold = [min(DEFAULT_THRESHOLD, window // 2)]
    return complete


def warn_beyond_profile(
    args: argparse.Namespace, limits: Sequence[SchedulerLimits], *, priced: bool
) -> None:
    """Print a warning for each limit or price that the profile does not cover.

    Args:
        priced: whether the output includes costs, which need a price.
    """
    if not args.profile:
        return
    for warning in warnings(
        read_profile(args.profile),
        max_model_len=max(one.max_model_len for one in limits),
        max_num_seqs=max(one.max_num_seqs for one in limits),
        max_num_batched_tokens=max(one.max_num_batched_tokens for one in limits),
        usd_per_gpu_hour=args.usd_per_gpu_hour if priced else 0.0,
    ):
        print(f"extproc: {args.profile}: {warning}", file=sys.stderr)


def read_batch_defaults(args: argparse.Namespace) -> BatchDefaults:
    """Return the default ``max_num_seqs`` and ``max_num_batched_tokens`` of a server.

    With a profile, the defaults are the values of the measured server.

    Raises:
        OptionError: the profile cannot be read.
    """
    if args.profile:
        profile = read_profile(args.profile)
        return BatchDefaults(profile.max_num_seqs, profile.max_num_batched_tokens)
    return batch_defaults(GPUS[args.gpu])


def read_profile(name: str) -> Profile:
    """Return a profile that ``extproc profile`` wrote.

    Raises:
        OptionError: the file cannot be read, or is not a profile.
    """
    try:
        return Profile.from_document(json.loads(Path(name).read_text()))
    except (OSError, ValueError, ProfileError) as error:
        raise OptionError(f"--profile: {name}: {error}") from error


def _profiled(name: str, usd: float | None) -> Engine:
    profile = read_profile(name)
    return Engine(
        f"{profile.model} as profiled",
        profile.step_time,
        profile.num_blocks,
        profile.block_size,
        profile.gpus,
        usd if usd is not None else profile.usd_per_gpu_hour or 0.0,
    )
