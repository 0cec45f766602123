"""A flow without Prefect: `python flow_program.py ACT FOLDER GRACE_SECONDS EVENT_ERROR [LAUNCHER...]`.

Like Prefect's engine it turns SIGTERM into a `BaseException`. It touches FOLDER/ready at the first progress event and
writes how `run_child` ended to FOLDER/outcome.json.
"""

import json
import signal
import sys
from pathlib import Path

from flows.launch import run_child
from tuneline.contracts.jobs import Job, ProgressEvent
from tuneline.contracts.spec import RunSpec
from tuneline.contracts.store import write_whole


class Terminated(BaseException):
    """What SIGTERM becomes."""


def terminate(number: int, frame: object) -> None:
    """Raise in the main thread, wherever it is."""
    raise Terminated


def main(act: str, folder: Path, grace_seconds: float, event_error: str, launcher: list[str]) -> None:
    """Run one stage and write down how that ended."""

    def on_event(event: ProgressEvent) -> None:
        (folder / "ready").touch()
        if event_error == "raise":
            raise Terminated

    spec = RunSpec.model_validate({"name": "t", "model": {"base": "b"}, "data": {"train": "t.csv"}})
    job = Job(stage="s", spec=spec, inputs={}, out_dir=folder / "out", options={"act": act})
    job.out_dir.mkdir(parents=True, exist_ok=True)
    try:
        result = run_child("stage_program", job, folder / "job", on_event, grace_seconds, launcher)
        outcome = result.model_dump(mode="json")
    except BaseException as error:
        outcome = {"raised": type(error).__name__}
    write_whole(folder / "outcome.json", json.dumps(outcome))


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, terminate)
    main(sys.argv[1], Path(sys.argv[2]), float(sys.argv[3]), sys.argv[4], sys.argv[5:])
