"""What a training may run on: the GPUs of the catalogue, and this machine's CPU."""

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Literal

import psutil

from tuneline.contracts.spec import BudgetSpec

GIB = 1 << 30
CPU_MEMORY_SHARE = 0.8
"""Share of the available memory that a training on the CPU may plan with: the machine has other work to do."""
NO_CGROUP_LIMIT_BYTES = 1 << 60
"""cgroup v1 writes 2**63 less one page where there is no limit."""


def as_gib(size_bytes: float) -> str:
    """Write a size for a person."""
    return f"{size_bytes / GIB:.1f} GiB"


@dataclass(frozen=True)
class Machine:
    """This machine's CPU: cores this process may use, memory it can still have, bf16 arithmetic in hardware."""

    cores: int
    available_memory_bytes: int
    has_bfloat16: bool


@dataclass(frozen=True)
class Device:
    """One device that a plan is made for; peaks are the vendor's, for dense matrix products.

    Peaks and bandwidth of a CPU are 0: `throughput` holds its measured speed.
    """

    name: str
    kind: Literal["gpu", "cpu"]
    memory_bytes: int
    half_flops_per_second: float
    fp32_flops_per_second: float
    memory_bytes_per_second: float
    has_bfloat16: bool
    has_flash_attention: bool
    """FlashAttention 2 needs compute capability 8.0 (Ampere) or newer."""


def _gpu(name: str, memory_gib: float, half: float, fp32: float, bandwidth: float, *, ampere: bool = True) -> Device:
    """Build a row of the catalogue: GiB, TFLOP/s in 16 bit, TFLOP/s in fp32, GB/s."""
    return Device(name, "gpu", int(memory_gib * GIB), half * 1e12, fp32 * 1e12, bandwidth * 1e9, ampere, ampere)


# Peaks: NVIDIA's data sheet of each card, dense (half of the figure "with sparsity"). Memory is what CUDA reports
# as total, which ECC and the driver leave of the nominal size: 14.6 of a T4's 16, 79.1 of an A100's 80.
GPUS: Mapping[str, Device] = MappingProxyType(
    {
        device.name: device
        for device in (
            _gpu("T4", 14.6, 65, 8.1, 320, ampere=False),  # NVIDIA T4 data sheet: fp16 only, no bf16
            _gpu("L4", 22.0, 121, 30.3, 300),  # NVIDIA L4 data sheet: 242 TFLOP/s with sparsity
            _gpu("A10G", 22.0, 70, 31.2, 600),  # NVIDIA A10G data sheet (AWS G5): 70 TFLOP/s, not the A10's 125
            _gpu("A100-40GB", 39.4, 312, 19.5, 1555),  # NVIDIA A100 data sheet
            _gpu("A100-80GB", 79.1, 312, 19.5, 2039),  # NVIDIA A100 80GB data sheet, SXM; PCIe has 1935 GB/s
            _gpu("H100", 79.1, 989, 67, 3350),  # NVIDIA H100 data sheet, SXM: 1979 TFLOP/s with sparsity
            _gpu("H200", 139.8, 989, 67, 4800),  # NVIDIA H200 data sheet, SXM
        )
    }
)


def device_of(budget: BudgetSpec, machine: Machine) -> Device:
    """Return the device that `budget.gpu` names; this machine's CPU for `none`."""
    if budget.gpu != "none":
        return GPUS[budget.gpu]
    return Device("cpu", "cpu", machine.available_memory_bytes, 0.0, 0.0, 0.0, machine.has_bfloat16, False)


def memory_limit_bytes(budget: BudgetSpec, device: Device) -> int:
    """Return the memory that a plan may use on one device: the config's, else all of a GPU or a share of the CPU's."""
    if budget.max_memory_gib is not None:
        return min(int(budget.max_memory_gib * GIB), device.memory_bytes)
    return device.memory_bytes if device.kind == "gpu" else int(device.memory_bytes * CPU_MEMORY_SHARE)


def this_machine(root: Path = Path("/")) -> Machine:
    """Look at the machine, or at the container that this process runs in (`root` is for tests)."""
    return Machine(
        cores=min(len(os.sched_getaffinity(0)), _cgroup_cores(root)),
        available_memory_bytes=min(psutil.virtual_memory().available, _cgroup_memory_bytes(root)),
        has_bfloat16=_has_bfloat16(root),
    )


def _cgroup_memory_bytes(root: Path) -> int:
    """Memory that the container's limit leaves: page cache that the kernel can drop does not count as used."""
    v2, v1 = root / "sys/fs/cgroup", root / "sys/fs/cgroup/memory"
    for folder, limit, used, cache in (
        (v2, "memory.max", "memory.current", "inactive_file"),
        (v1, "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    ):
        limit_bytes = _number(folder / limit)
        if limit_bytes is not None and limit_bytes < NO_CGROUP_LIMIT_BYTES:
            used_bytes = (_number(folder / used) or 0) - _entry(folder / "memory.stat", cache)
            return max(0, limit_bytes - max(0, used_bytes))
    return NO_CGROUP_LIMIT_BYTES


def _cgroup_cores(root: Path) -> int:
    """Cores that the container's CPU quota amounts to, at least one."""
    text = _text(root / "sys/fs/cgroup/cpu.max").split()
    if len(text) == 2 and text[0] != "max":
        return max(1, math.floor(int(text[0]) / int(text[1])))
    quota = _number(root / "sys/fs/cgroup/cpu/cpu.cfs_quota_us") or -1
    period = _number(root / "sys/fs/cgroup/cpu/cpu.cfs_period_us") or 1
    return max(1, quota // period) if quota > 0 else os.cpu_count() or 1


def _has_bfloat16(root: Path) -> bool:
    flags = _text(root / "proc/cpuinfo").split()
    return "avx512_bf16" in flags or "amx_bf16" in flags  # what training asks torch for, too


def _entry(path: Path, key: str) -> int:
    fields = (line.split() for line in _text(path).splitlines())
    return next((int(value) for name, value in fields if name == key), 0)


def _number(path: Path) -> int | None:
    text = _text(path).strip()
    return int(text) if text.lstrip("-").isdigit() else None


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (FileNotFoundError, NotADirectoryError):
        return ""  # a kernel without this file: there is no such limit
