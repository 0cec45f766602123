"""How often the kernel's out-of-memory killer has struck here: how a stage that it ended is told from any `kill -9`."""

from collections.abc import Iterator
from pathlib import Path

V1_CONTROLLER = "memory"


def oom_kills(root: Path = Path("/")) -> int:
    """Count the processes of this process's memory group, which its children share, that the kernel has killed.

    cgroup v2 counts them in `memory.events` and v1 in `memory.oom_control`; without either the count is the machine's.

    Args:
        root: where /proc and /sys are.
    """
    for path in [*_group_counters(root), root / "proc/vmstat"]:
        fields = (line.split() for line in _text(path).splitlines())
        counted = [int(value) for name, value in fields if name == "oom_kill"]
        if counted:
            return counted[0]
    return 0


def _group_counters(root: Path) -> Iterator[Path]:
    """Name the files that may count; in a container that sees no group of its own, the mount's root is the group."""
    mount = root / "sys/fs/cgroup"
    for line in _text(root / "proc/self/cgroup").splitlines():
        _, controllers, group = line.split(":", 2)
        if not controllers:
            yield from (mount / group.lstrip("/") / "memory.events", mount / "memory.events")
        elif V1_CONTROLLER in controllers.split(","):
            folder = mount / V1_CONTROLLER
            yield from (folder / group.lstrip("/") / "memory.oom_control", folder / "memory.oom_control")


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError:  # another kernel, or a group that this container does not see
        return ""
