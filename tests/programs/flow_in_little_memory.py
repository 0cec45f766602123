"""A flow inside a memory cgroup, with a stage that takes more than the cgroup grants; prints how the stage ended."""

import os
import sys
from pathlib import Path

from flows.launch import run_child
from tuneline.contracts.jobs import Job
from tuneline.contracts.spec import RunSpec


def main(group: Path, folder: Path) -> None:
    """Join the cgroup and run the stage."""
    (group / "cgroup.procs").write_text(str(os.getpid()))
    spec = RunSpec.model_validate({"name": "t", "model": {"base": "b"}, "data": {"train": "t.csv"}})
    job = Job(stage="s", spec=spec, inputs={}, out_dir=folder, options={"act": "hoard"})
    result = run_child("stage_program", job, folder / "job", print)
    print(f"{result.status.value}: {result.detail}")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
