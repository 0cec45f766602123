import os
from pathlib import Path

import pytest

from tuneline.contracts.spec import BudgetSpec
from tuneline.planning.hardware import CPU_MEMORY_SHARE, GIB, GPUS, Machine, device_of, memory_limit_bytes, this_machine

CPU = Machine(cores=4, available_memory_bytes=10 * GIB, has_bfloat16=False)


def write(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def test_this_machine_has_cores_and_memory() -> None:
    machine = this_machine()
    assert 1 <= machine.cores <= (os.cpu_count() or 1)
    assert 0 < machine.available_memory_bytes < 1 << 50


@pytest.mark.parametrize(
    "files",
    [
        {
            "sys/fs/cgroup/memory.max": "100000000\n",
            "sys/fs/cgroup/memory.current": "60000000\n",
            "sys/fs/cgroup/memory.stat": "anon 1\ninactive_file 20000000\n",
            "sys/fs/cgroup/cpu.max": "100000 100000\n",
        },
        {
            "sys/fs/cgroup/memory/memory.limit_in_bytes": "100000000\n",
            "sys/fs/cgroup/memory/memory.usage_in_bytes": "60000000\n",
            "sys/fs/cgroup/memory/memory.stat": "inactive_file 1\ntotal_inactive_file 20000000\n",
            "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "150000\n",
            "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
        },
    ],
    ids=["cgroup v2", "cgroup v1"],
)
def test_a_containers_limits_count_and_its_page_cache_does_not(tmp_path: Path, files: dict[str, str]) -> None:
    machine = this_machine(write(tmp_path, files))
    assert machine.available_memory_bytes == 60_000_000
    assert machine.cores == 1


def test_a_group_without_limits_leaves_the_machines_own(tmp_path: Path) -> None:
    files = {
        "sys/fs/cgroup/memory.max": "max\n",
        "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n",
        "sys/fs/cgroup/cpu.max": "max 100000\n",
        "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1\n",
    }
    machine = this_machine(write(tmp_path, files))
    assert machine.cores == len(os.sched_getaffinity(0))
    assert machine.available_memory_bytes > 1 << 28


@pytest.mark.parametrize(("flags", "expected"), [("fpu avx512_bf16 sse", True), ("amx_bf16", True), ("avx512f", False)])
def test_bfloat16_is_read_from_the_cpu_flags(tmp_path: Path, flags: str, expected: bool) -> None:
    assert this_machine(write(tmp_path, {"proc/cpuinfo": f"flags : {flags}\n"})).has_bfloat16 is expected


def test_every_gpu_that_a_config_may_name_is_in_the_catalogue() -> None:
    for name in BudgetSpec.model_json_schema()["properties"]["gpu"]["enum"]:
        assert device_of(BudgetSpec(gpu=name), CPU).kind == ("cpu" if name == "none" else "gpu")
    assert not GPUS["T4"].has_bfloat16 and GPUS["L4"].has_bfloat16


def test_the_configs_limit_holds_but_cannot_exceed_the_device() -> None:
    device = device_of(BudgetSpec(gpu="L4"), CPU)
    assert memory_limit_bytes(BudgetSpec(gpu="L4", max_memory_gib=10), device) == 10 * GIB
    assert memory_limit_bytes(BudgetSpec(gpu="L4", max_memory_gib=100), device) == device.memory_bytes
    assert memory_limit_bytes(BudgetSpec(), device_of(BudgetSpec(), CPU)) == int(10 * GIB * CPU_MEMORY_SHARE)
