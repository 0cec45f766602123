"""Child process of the prepare stage: `python -m tuneline.data JOB_DIR`."""

import sys

from tuneline.contracts.artifacts import Record
from tuneline.contracts.jobs import Job, Reporter, run_job


def run(job: Job, report: Reporter) -> Record:
    """Run the stage that the job names."""
    from tuneline.data.prepare import prepare  # here, because transformers takes seconds to import

    assert job.stage == "prepare", job.stage
    return prepare(job, report)


sys.exit(run_job(sys.argv[1:], run))
