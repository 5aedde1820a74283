"""The numbers in both papers that can be derived, each with its derivation.

Papers: arXiv 2604.09613 (TBA) and arXiv 2604.08075 (DP), which supersedes it.
"""

from dataclasses import dataclass, replace

from extproc.fleet import cost
from extproc.fleet.gpus import GB, GPUS, MIB, Gpu
from extproc.fleet.hardware import Deployment
from extproc.fleet.models import MODELS
from extproc.fleet.steptime import PAPER_KV_TOKENS, Linear


@dataclass(frozen=True, slots=True)
class Claim:
    """One number of the papers, and its derivation in this module."""

    paper: str
    what: str
    theirs: str
    ours: str
    exact: bool
    """Whether the derivation results in the papers' number."""
    note: str
    """The derivation, or the reason for a difference."""


def _claim(paper: str, what: str, theirs: str, ours: str, note: str) -> Claim:
    return Claim(paper, what, theirs, ours, theirs == ours, note)


def claims() -> list[Claim]:
    """Derive every number that follows from statements of the papers."""
    return [*_counts(), *_dollars(), *_sequences(), *_throughput_gain()]


def _counts() -> list[Claim]:
    found = []
    for trace, alpha, predicted, simulated in (
        ("Azure", 0.80, "60.0 %", 208),
        ("LMSYS", 0.68, "51.0 %", 246),
    ):
        ours = f"{100 * cost.formula_saving(alpha, 11.2 / 2.8):.1f} %"
        formula = cost.split(
            [cost.Demand(1000 * alpha, 11.2), cost.Demand(1000 * (1 - alpha), 2.8)]
        )
        found.append(
            _claim(
                "DP",
                f"{trace}: predicted saving",
                predicted,
                ours,
                f"alpha (1 - 1/rho) with alpha {alpha}, rho 11.2/2.8",
            )
        )
        found.append(
            _claim(
                "DP",
                f"{trace}: instances after the split",
                str(simulated),
                str(formula),
                "theirs is simulated; the formula with their rates gives ours",
            )
        )
    homogeneous = cost.homogeneous(1000, 2.8)
    found.insert(
        0,
        _claim(
            "DP",
            "homogeneous instances, 1,000 req/s",
            "358",
            str(homogeneous),
            "ceil(1000 / 2.8)",
        ),
    )
    for trace, after, theirs in (("Azure", 208, "41.9 %"), ("LMSYS", 246, "31.3 %")):
        found.append(
            _claim(
                "DP",
                f"{trace}: simulated saving",
                theirs,
                f"{100 * cost.saving(homogeneous, after):.1f} %",
                f"({homogeneous} - {after}) / {homogeneous}, from their own counts",
            )
        )
    return found


def _dollars() -> list[Claim]:
    twelve_months = cost.usd_per_year(150, 1, 2.21, cost.HOURS_PER_TWELVE_MONTHS)
    year = cost.usd_per_year(197 - 137, 8, 3.67)
    return [
        _claim(
            "DP",
            "Azure: dollars a year",
            "$2.86M",
            f"${twelve_months / 1e6:.2f}M",
            "150 x $2.21 x 8,640 h (12 x 30 days); 8,760 h would be $2.90M; one "
            "instance is charged as one GPU",
        ),
        _claim(
            "DP",
            "Qwen3-235B on MI300X: GPUs",
            "1,576 and 1,096",
            f"{197 * 8:,} and {137 * 8:,}",
            "197 and 137 nodes of 8; the rate of a node is not published",
        ),
        _claim(
            "DP",
            "Qwen3-235B on MI300X: dollars a year",
            "$15.4M",
            f"${year / 1e6:.1f}M",
            "480 x $3.67 x 8,760 h",
        ),
    ]


def _in_decimal_gb(gpu: Gpu, gigabytes: float) -> Gpu:
    """Return a GPU with memory counted as in the papers, with 10^9 bytes per GB."""
    return replace(gpu, memory_mib=round(gigabytes * GB / MIB))


def _sequences() -> list[Claim]:
    qwen, llama = MODELS["Qwen3-235B-A22B"], MODELS["Llama-3-70B"]
    mi300x = _in_decimal_gb(GPUS["MI300X-192GB"], 192)
    node = Deployment(qwen, mi300x, 8, 0.9, reserved_bytes=10 * GB)
    even = node.kv_bytes_per_gpu / (qwen.kv_bytes_per_token / 8)
    two, eight = (
        Deployment(llama, GPUS["A100-80GB"], tp, reserved_bytes=0) for tp in (2, 8)
    )
    return [
        _claim(
            "DP",
            "Qwen3-235B sequences at 8K and 32K",
            "676 and 169",
            f"{int(even // 8192)} and {int(even // 32_768)}",
            "133.4 GB a GPU over KV bytes divided by eight",
        ),
        _claim(
            "DP",
            "the same with 4 KV heads on 8 GPUs",
            "676 and 169",
            f"{node.worst_case_seqs(8192)} and {node.worst_case_seqs(32_768)}",
            "a GPU holds at least one whole KV head, so each is there twice",
        ),
        _claim(
            "DP",
            "Llama-3-70B sequences at 64K and 8K",
            "16 and 128",
            f"{PAPER_KV_TOKENS // 65_536} and {PAPER_KV_TOKENS // 8192}",
            "65,536 blocks of 16 tokens, as in the authors' simulator",
        ),
        _claim(
            "DP",
            "the same from memory, two A100 as stated",
            "16 and 128",
            f"{two.worst_case_seqs(65_536)} and {two.worst_case_seqs(8192)}",
            f"weights leave {2 * two.kv_bytes_per_gpu / GB:.1f} GB of 2 x 81,920 MiB",
        ),
        _claim(
            "DP",
            "the same from memory, eight A100",
            "16 and 128",
            f"{eight.worst_case_seqs(65_536)} and {eight.worst_case_seqs(8192)}",
            "16 and 128 are about a node of eight, charged as one GPU",
        ),
    ]


def _throughput_gain() -> list[Claim]:
    step = Linear(base_s=8.0e-3, seq_s=0.65e-3)
    gain = (128 / step.fixed_s(0, 128)) / (16 / step.fixed_s(0, 16))
    return [
        _claim(
            "DP",
            "throughput gain, rho",
            "4.00",
            f"{gain:.2f}",
            "theirs is stated as measured; ours is their simulator's own W and H",
        ),
        _claim(
            "TBA",
            "LMSYS: saving",
            "38.5 %",
            f"{100 * cost.formula_saving(1.0, gain):.1f} %",
            "alpha 1 and that rho: the older paper lives in the world of rho 1.6",
        ),
    ]
