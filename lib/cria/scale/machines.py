"""GPUs to plan with: what their makers' data sheets say.

Names are `model-memory`. Peak is the dense bfloat16 matrix rate (data sheets like to
print it doubled, "with sparsity"); watts are the most that one GPU may draw.
"""

from __future__ import annotations

from dataclasses import dataclass

from cria import names

RESERVE = 0.1
"""Ours: the share of memory left for the driver, NCCL and fragmentation."""


@dataclass(frozen=True)
class GPU:
    """One kind of GPU."""

    name: str
    memory_bytes: float  # 1 GB = 10^9 bytes
    peak_flops: float  # a second, bfloat16, dense
    bandwidth: float  # of its memory, bytes a second
    watts: float
    source: str

    @property
    def usable_bytes(self) -> float:
        """What a plan may fill: the memory less `RESERVE`."""
        return self.memory_bytes * (1 - RESERVE)


_A100 = "NVIDIA A100 data sheet, SXM4"
_H100 = "NVIDIA H100 data sheet, SXM5"

GPUS = {
    gpu.name: gpu
    for gpu in (
        GPU("a100-40gb", 40e9, 312e12, 1.555e12, 400, _A100),
        GPU("a100-80gb", 80e9, 312e12, 2.039e12, 400, _A100),  # the paper's
        GPU("h100-80gb", 80e9, 989e12, 3.35e12, 700, _H100),
        GPU("h200-141gb", 141e9, 989e12, 4.8e12, 700, "NVIDIA H200 data sheet, SXM"),
        GPU("b200-180gb", 180e9, 2250e12, 8e12, 1000, "NVIDIA DGX B200 data sheet, ÷8"),
        GPU("mi300x-192gb", 192e9, 1307e12, 5.3e12, 750, "AMD Instinct MI300X sheet"),
        GPU("l40s-48gb", 48e9, 362e12, 0.864e12, 350, "NVIDIA L40S data sheet"),
        GPU("rtx4090-24gb", 24e9, 165e12, 1.008e12, 450, "NVIDIA Ada whitepaper"),
    )
}
PAPER_GPU = "a100-80gb"  # section 2.2.1


def find(name: str) -> GPU:
    """The GPU of that name (capitals and underscores forgiven), or a ValueError."""
    plain = name.strip().lower().replace("_", "-").replace(" ", "-")
    if plain not in GPUS:
        raise ValueError(names.unknown("GPU", name, GPUS))
    return GPUS[plain]
