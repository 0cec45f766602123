"""`python -m training JOB_DIR`: the stages `train` and `merge` as a child process."""

import os
import sys

from training.launch import launch, processes_of
from tuneline.contracts.artifacts import Plan, Record
from tuneline.contracts.jobs import LOADING, Job, ProgressEvent, Reporter, run_job
from tuneline.contracts.store import read_record


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


def main() -> int:
    """Run the job here, or in one process for each device when its training asks for several."""
    processes = processes_of(sys.argv[1])
    if processes > 1:
        return launch(sys.argv[1], processes)
    if "RANK" not in os.environ:
        # With more than one visible and no launcher, TRL refuses to start; set before torch looks.
        os.environ["CUDA_VISIBLE_DEVICES"] = os.environ.get("CUDA_VISIBLE_DEVICES", "0").partition(",")[0]
    return run_job(sys.argv[1:], run)


if __name__ == "__main__":
    sys.exit(main())
