"""Our prepare stage, as its child process runs it: `python -m tuneline.data JOB_DIR` after the imports.

Everything that a config does not switch off is on: cleaning, conflicts, secrets and personal data, leaks into the
held-out rows, mask checks, the receipt.
"""

import sys
from pathlib import Path

from benchmarks.peers.protocol import Driver


def main() -> None:
    driver = Driver()
    task = driver.task
    from datasets import Dataset
    from transformers import AutoTokenizer

    from tuneline.contracts.artifacts import PreparedData
    from tuneline.contracts.jobs import JOB, RESULT, Job, JobResult, JobStatus, run_job
    from tuneline.contracts.spec import RunSpec
    from tuneline.contracts.store import write_whole
    from tuneline.data.prepare import prepare

    AutoTokenizer.from_pretrained(task.model)  # as the peers' drivers do: its imports are not measured
    out_dir = task.work_dir / "prepared"
    out_dir.mkdir()
    data = {
        "train": task.train,
        "held_out": task.held_out,
        "max_length_tokens": task.max_length_tokens,
        "cleaning": {"near_duplicates": task.near_duplicates},
    }
    spec = RunSpec.model_validate({"name": "benchmark", "model": {"base": task.model}, "data": data})
    job = Job(stage="prepare", spec=spec, inputs={"base": Path(task.model)}, out_dir=out_dir)
    write_whole(task.work_dir / JOB, job.model_dump_json())
    driver.ready()
    run_job([task.work], prepare)
    driver.done()
    result = JobResult.model_validate_json((task.work_dir / RESULT).read_text(encoding="utf-8"))
    if result.status is not JobStatus.COMPLETED:
        sys.exit(result.model_dump_json(indent=1))
    driver.facts(Dataset.from_file(str(out_dir / PreparedData.TRAIN)))


if __name__ == "__main__":
    main()
