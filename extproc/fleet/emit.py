"""A plan as files to apply: vLLM command lines, the router's YAML, and patches.

Files and deployments are named after the pools: ``vllm-short.sh`` starts an instance of
the short pool, and ``deployment-short.yaml`` is a strategic merge patch for the
Deployment ``vllm-short`` with a container ``vllm``.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from extproc.fleet.plan_document import Plan, PoolRow


@dataclass(frozen=True, slots=True)
class Serving:
    """The options of an instance other than its pool's limits."""

    model: str | None
    """Model name for ``vllm serve``; None if the plan does not name the model."""
    gpu_memory_utilization: float | None = None
    """None for a profiled server, which keeps the value it was started with."""
    kv_cache_dtype: str = "auto"
    """``auto``, vLLM's default, is omitted from the command line."""
    enable_prefix_caching: bool = True
    async_scheduling: bool = True

    def flags(self, pool: PoolRow) -> list[str]:
        """Return the flags of ``vllm serve`` for one instance of a pool."""
        flags = [
            f"--max-model-len {pool.max_model_len}",
            f"--max-num-seqs {pool.max_num_seqs}",
            f"--max-num-batched-tokens {pool.max_num_batched_tokens}",
            f"--tensor-parallel-size {pool.gpus_per_instance}",
        ]
        if self.gpu_memory_utilization is not None:
            flags.append(f"--gpu-memory-utilization {self.gpu_memory_utilization:g}")
        if self.kv_cache_dtype != "auto":
            flags.append(f"--kv-cache-dtype {self.kv_cache_dtype}")
        if not self.enable_prefix_caching:
            flags.append("--no-enable-prefix-caching")
        if not self.async_scheduling:
            flags.append("--no-async-scheduling")
        return flags

    def command(self, pool: PoolRow) -> str:
        """Return the command line of one instance."""
        model = self.model or '"${MODEL:?the model to serve}"'
        return " ".join(["vllm serve", model, *self.flags(pool)])


def files(plan: Plan, serving: Serving, *, deployments: bool) -> dict[str, str]:
    """Return the content of each file, keyed by its name.

    Args:
        deployments: whether to include Kubernetes patches.
    """
    found = {
        f"vllm-{pool.name}.sh": _script(plan, serving, pool) for pool in plan.pools
    }
    found["router.yaml"] = _router(plan)
    if deployments:
        for pool in plan.pools:
            found[f"deployment-{pool.name}.yaml"] = _deployment(serving, pool)
    return found


def pools_yaml(
    pools: Sequence[tuple[str, int, int | None]], *, endpoints: bool = True
) -> str:
    """Return the ``pools`` section of the router's configuration.

    Args:
        pools: name, ``max_model_len`` and threshold of each pool; the last threshold is
            None.
    """
    lines = ["pools:"]
    for name, max_model_len, threshold in pools:
        entry = f"  - {{name: {name}, max_model_len: {max_model_len}"
        if threshold is not None:
            entry += f", threshold_tokens: {threshold}"
        if endpoints:
            entry += f", endpoints: ['http://vllm-{name}:8000']"
        lines.append(entry + "}")
    return "\n".join(lines) + "\n"


def _script(plan: Plan, serving: Serving, pool: PoolRow) -> str:
    return (
        "#!/bin/sh\n"
        f"# One of {pool.instances:,} instances of the pool {pool.name}, planned for "
        f"{plan.rate:.4g} requests a second\n"
        f"# of {plan.workload} on {pool.engine}.\n"
        f'exec {serving.command(pool)} "$@"\n'
    )


def _router(plan: Plan) -> str:
    last = plan.pools[-1]
    rows = [
        (
            pool.name,
            pool.max_model_len,
            None if pool is last else pool.threshold_tokens,
        )
        for pool in plan.pools
    ]
    counts = ", ".join(f"{pool.instances:,} {pool.name}" for pool in plan.pools)
    return (
        f"# Planned for {plan.rate:.4g} requests a second of {plan.workload}: "
        f"{counts}.\n"
        "# The endpoints are where the router reads the load of each pool; put yours.\n"
        + pools_yaml(rows)
    )


def _deployment(serving: Serving, pool: PoolRow) -> str:
    model = [f"            - {serving.model}\n"] if serving.model else []
    args = "".join(
        f"            - {part}\n"
        for flag in serving.flags(pool)
        for part in ["=".join(flag.split(" ", 1))]
    )
    note = "" if serving.model else "            # the model comes first\n"
    return (
        f"# kubectl patch deployment vllm-{pool.name} --patch-file "
        f"deployment-{pool.name}.yaml\n"
        f"# A replica is {pool.engine}.\n"
        "spec:\n"
        f"  replicas: {pool.instances}\n"
        "  template:\n"
        "    spec:\n"
        "      containers:\n"
        "        - name: vllm\n"
        "          args:\n" + note + "".join(model) + args + "          resources:\n"
        "            limits:\n"
        f"              nvidia.com/gpu: {pool.gpus_per_instance}\n"
    )
