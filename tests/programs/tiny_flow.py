"""A Prefect flow whose only task is a stage in a child process."""

from pathlib import Path

from prefect import flow, task

from flows.launch import end_with_worker, raise_for, run_child
from tuneline.contracts.jobs import OUTPUT, Job, ProgressEvent
from tuneline.contracts.spec import RunSpec


@task
def stage(act: str, folder: str, grace_seconds: float) -> None:
    """Run the stage, touching FOLDER/ready at its first event."""
    root = Path(folder)

    def on_event(event: ProgressEvent) -> None:
        (root / "ready").touch()

    spec = RunSpec.model_validate({"name": "t", "model": {"base": "b"}, "data": {"train": "t.csv"}})
    job = Job(stage="s", spec=spec, inputs={}, out_dir=root / "out", options={"act": act})
    job.out_dir.mkdir(parents=True, exist_ok=True)
    raise_for(run_child("stage_program", job, root / "job", on_event, grace_seconds), "s", root / "job" / OUTPUT)


@flow
def tiny(act: str, folder: str, grace_seconds: float) -> None:
    """Run one stage."""
    end_with_worker()
    stage(act, folder, grace_seconds)
