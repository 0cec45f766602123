"""The machine and the day that a figure belongs to."""

import os
import platform
from datetime import UTC, datetime
from pathlib import Path

GIB = 2**30


def describe_machine() -> str:
    """Name processor, cores, memory, Python and the date in one line."""
    fields = (line.partition(":") for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines())
    model = next((value.strip() for name, _, value in fields if name.strip() == "model name"), "unknown processor")
    memory_bytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return (
        f"{model}, {len(os.sched_getaffinity(0))} cores, {memory_bytes / GIB:.0f} GiB, "
        f"Python {platform.python_version()}, {datetime.now(UTC):%Y-%m-%d}"
    )
