"""`python -m training JOB_DIR`: the stages `train` and `merge` as a child process.

`python -m training --join HOST:PORT` takes part in the training that another node leads.
"""

import os
import sys
import time
from pathlib import Path

from training.launch import launch, processes_of, take_part
from tuneline.contracts.artifacts import Plan, Record
from tuneline.contracts.errors import ExitCode
from tuneline.contracts.jobs import LOADING, RESULT, Job, ProgressEvent, Reporter, run_job
from tuneline.contracts.store import read_record

RANK_0_SECONDS = 5.0
"""What writing the job's result may take."""


def run(job: Job, report: Reporter) -> Record:
    """Run the stage that the job names; torch and its friends load only after the first sign of life."""
    match job.stage:
        case "train":
            steps = read_record(job.inputs["plan"], Plan).optimizer_steps
            report(ProgressEvent(done=0, planned=steps, unit="steps", note=LOADING))
            from training.train import train

            return train(job, report)
        case "merge":
            report(ProgressEvent(done=0, planned=1, unit="tensors", note=LOADING))
            from training.merge import merge

            return merge(job, report)
    raise AssertionError(f"training has no stage {job.stage!r}")


def wait_for_rank_0(job_dir: Path) -> None:
    """Give the rank that speaks for all the time to do so: the agent ends it when another one exits with an error."""
    deadline = time.monotonic() + RANK_0_SECONDS
    while not (job_dir / RESULT).exists() and time.monotonic() < deadline:
        time.sleep(0.05)


def main() -> int:
    """Run the job here, or in one process for each device when its training asks for several."""
    if sys.argv[1] == "--join":
        return take_part(sys.argv[2])
    processes = processes_of(sys.argv[1])
    if processes > 1:
        return launch(sys.argv[1], processes)
    if "RANK" not in os.environ:
        # With more than one visible and no launcher, TRL refuses to start; set before torch looks.
        os.environ["CUDA_VISIBLE_DEVICES"] = os.environ.get("CUDA_VISIBLE_DEVICES", "0").partition(",")[0]
    status = run_job(sys.argv[1:], run)
    if status != ExitCode.DONE and os.environ.get("RANK", "0") != "0":
        wait_for_rank_0(Path(sys.argv[1]))
    return status


if __name__ == "__main__":
    sys.exit(main())
