"""GPUs: memory, rates, links and prices, each with its public source.

Memory sizes are those that the driver reports, in MiB. The "80 GB" of a data sheet are
81,920 MiB on an A100 and 81,559 MiB on an H100. Rates are dense (without sparsity).
"""

from dataclasses import dataclass

GB = 1e9
MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class Price:
    """A public price of one GPU-hour, used if the operator enters no price."""

    usd_per_hour: float
    date: str
    """Date of the price, or of the source if the price itself is undated."""
    region: str
    """Region as the source states it."""
    source: str

    def __str__(self) -> str:
        return (
            f"${self.usd_per_hour:g} a GPU-hour ({self.source}; {self.region}; "
            f"{self.date})"
        )


@dataclass(frozen=True, slots=True)
class Gpu:
    """One accelerator."""

    name: str
    memory_mib: int
    """Memory as ``nvidia-smi`` or ``amd-smi`` reports it."""
    memory_bytes_per_s: float
    """Peak memory bandwidth."""
    bf16_flops: float
    """Peak 16-bit matrix throughput, FLOP/s."""
    fp8_flops: float
    """Peak 8-bit matrix throughput; ``bf16_flops`` if the GPU has no 8-bit support."""
    link_bytes_per_s: float
    """GPU-to-GPU bandwidth within a node, one direction."""
    network_bytes_per_s: float
    """Network bandwidth per GPU of a node, one direction."""
    price: Price
    source: str
    """Source of the rates; ``memory_source`` is the source of the memory size."""
    memory_source: str
    gpus_per_node: int = 8
    """Number of GPUs that the links connect."""

    @property
    def memory_bytes(self) -> float:
        """Memory in bytes."""
        return float(self.memory_mib * MIB)

    @property
    def usd_per_hour(self) -> float:
        """Public price of one GPU-hour."""
        return self.price.usd_per_hour


_NVIDIA_SMI = "nvidia-smi"

GPUS = {
    gpu.name: gpu
    for gpu in (
        Gpu(
            "A100-80GB",
            memory_mib=81_920,
            memory_bytes_per_s=2039 * GB,
            bf16_flops=312e12,
            fp8_flops=312e12,
            link_bytes_per_s=300 * GB,
            network_bytes_per_s=25 * GB,
            price=Price(
                2.21,
                "April 2026",
                "no region stated",
                "arXiv 2604.08075, section 4",
            ),
            source="NVIDIA A100 80GB SXM data sheet (NVLink 600 GB/s both ways); "
            "DGX A100: 200 Gbit/s a GPU",
            memory_source=f"{_NVIDIA_SMI}, as in vLLM issue 2069",
        ),
        Gpu(
            "H100-80GB",
            memory_mib=81_559,
            memory_bytes_per_s=3350 * GB,
            bf16_flops=989e12,
            fp8_flops=1979e12,
            link_bytes_per_s=450 * GB,
            network_bytes_per_s=50 * GB,
            price=Price(
                4.02,
                "2026, undated in the file",
                "no region stated",
                "vllm-project/semantic-router, fleet-sim profiles.py",
            ),
            source="NVIDIA H100 SXM data sheet (NVLink 900 GB/s both ways); "
            "DGX H100: 400 Gbit/s a GPU",
            memory_source=_NVIDIA_SMI,
        ),
        Gpu(
            "H200-141GB",
            memory_mib=143_771,
            memory_bytes_per_s=4800 * GB,
            bf16_flops=989e12,
            fp8_flops=1979e12,
            link_bytes_per_s=450 * GB,
            network_bytes_per_s=50 * GB,
            price=Price(
                5.408,
                "2024",
                "US regions",
                "AWS EC2 Capacity Blocks, 8 x H200 at $43.26 an hour",
            ),
            source="NVIDIA H200 SXM data sheet (NVLink 900 GB/s both ways); "
            "DGX H200: 400 Gbit/s a GPU",
            memory_source=_NVIDIA_SMI,
        ),
        Gpu(
            "L40S-48GB",
            memory_mib=46_068,
            memory_bytes_per_s=864 * GB,
            bf16_flops=362e12,
            fp8_flops=733e12,
            link_bytes_per_s=32 * GB,
            network_bytes_per_s=12.5 * GB,
            price=Price(
                1.861,
                "August 2025",
                "us-east-1",
                "AWS g6e.xlarge on demand",
            ),
            source="NVIDIA L40S data sheet (PCIe 4.0 x16, 64 GB/s both ways); "
            "g6e.48xlarge: 400 Gbit/s for eight, half of it assumed",
            memory_source=_NVIDIA_SMI,
        ),
        Gpu(
            "MI300X-192GB",
            memory_mib=196_592,
            memory_bytes_per_s=5300 * GB,
            bf16_flops=1307e12,
            fp8_flops=2615e12,
            link_bytes_per_s=448 * GB,
            network_bytes_per_s=50 * GB,
            price=Price(
                3.67,
                "April 2026",
                "no region stated",
                "arXiv 2604.08075, section 4.7",
            ),
            source="AMD MI300X data sheet (Infinity Fabric 896 GB/s both ways); "
            "400 Gbit/s a GPU in AMD's reference designs",
            memory_source="amd-smi",
        ),
    )
}
