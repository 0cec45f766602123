"""The stage `train` on a machine with too little memory: `options["starve"]` says from how many rows on, and when.

`options["rank"]` says in which rank of several. The allocation that fails is a real one, of memory that a limit of the
kernel (RLIMIT_AS) withholds.
"""

import os
import resource
import sys
from pathlib import Path
from typing import Any

import torch
from transformers import Trainer

from training.__main__ import run
from tuneline.contracts.artifacts import Record
from tuneline.contracts.jobs import Job, Reporter, run_job

HEADROOM_BYTES = 256 << 20
"""For what a process does on its way out."""
REQUEST_BYTES = 1 << 30


def allocate_beyond_the_limit() -> None:
    """Fail as torch's allocator fails when the machine has no memory left."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
    limit_bytes = pages * resource.getpagesize() + HEADROOM_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (limit_bytes, resource.RLIM_INFINITY))
    torch.empty(REQUEST_BYTES, dtype=torch.uint8)
    raise AssertionError("the limit did not hold")


def starved(job: Job, report: Reporter) -> Record:
    """Train, and run out of memory in the given step with micro-batches of more than the given rows."""
    most_rows, step = (int(number) for number in job.options["starve"].split("@"))
    starves = os.environ.get("RANK", "0") == job.options.get("rank", "0")
    training_step = Trainer.training_step

    def hungry_step(self: Any, model: Any, inputs: Any, items: Any = None) -> Any:
        if starves and len(inputs["input_ids"]) > most_rows and self.state.global_step == step:
            allocate_beyond_the_limit()
        return training_step(self, model, inputs, items)

    Trainer.training_step = hungry_step
    return run(job, report)


if __name__ == "__main__":
    sys.exit(run_job(sys.argv[1:], starved))
