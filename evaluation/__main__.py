"""`python -m evaluation JOB_DIR`: the evaluate stage in a process of its own."""

import sys

from tuneline.contracts.artifacts import EvalReport
from tuneline.contracts.jobs import Job, Reporter, run_job


def run(job: Job, report: Reporter) -> EvalReport:
    """Run the stage; torch and transformers are imported only here, after telemetry is off."""
    from evaluation.run import evaluate

    assert job.stage == "evaluate", f"evaluation has no stage {job.stage!r}"
    return evaluate(job, report)


if __name__ == "__main__":
    sys.exit(run_job(sys.argv[1:], run))
