"""What the tasks of one run share: the config, the store, the services of this machine, and the account of the run."""

import logging
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TypeVar

from flows import making
from flows.inputs import open_inputs
from flows.progress import Listener
from tuneline.contracts.artifacts import Record
from tuneline.contracts.errors import ExitCode, TunelineError
from tuneline.contracts.jobs import Job
from tuneline.contracts.run_record import STAGES, RunRecord, StageLine, new_run_id, save_run
from tuneline.contracts.settings import Settings
from tuneline.contracts.store import ArtifactStore, Stored
from tuneline.planning.hardware import Machine, this_machine
from tuneline.registry.connection import Registry, connect
from tuneline.registry.tracking import LiveRun, RunStatus

R = TypeVar("R", bound=Record)
logger = logging.getLogger("tuneline.run")


class Run:
    """One run of the flow.

    A plain class on purpose: Prefect walks into dataclasses and models that tasks are given, and copies them.
    """

    def __init__(self, config: str, overrides: Sequence[str]) -> None:
        """Open the inputs and connect to MLflow, before anything is made.

        Raises:
            UserError: config, base model, files, MLflow.
        """
        self.started = time.monotonic()
        self.settings = Settings.from_environment()
        inputs = open_inputs(config, overrides, self.settings)
        self.spec, self.base, self.source_sha256 = inputs.spec, inputs.base, inputs.source_sha256
        self.store = ArtifactStore(self.settings.store_root)
        self.machine: Machine = this_machine()
        self.registry: Registry = connect(self.settings)
        self.live: LiveRun | None = None
        self.lines: list[StageLine] = []
        self.record = RunRecord(
            run_id=new_run_id(self.spec.name),
            name=self.spec.name,
            config=config,
            overrides=tuple(overrides),
            started_at=datetime.now(UTC).isoformat(timespec="seconds"),
            seconds=0.0,
            exit_code=ExitCode.FAILED,
            outcome="FAILED",
            model=self.spec.model_name,
            mlflow_tracking_uri=self.settings.mlflow_tracking_uri,
        )

    def obtain(
        self, stage: str, fingerprint: str, kind: type[R], make: Callable[[Path], R], *, keep: bool = False
    ) -> Stored[R]:
        """Find an artifact in the store, or make it there, as `making.obtain` does."""
        return making.obtain(self.store, stage, fingerprint, kind, make, keep=keep)

    def child(
        self,
        package: str,
        stage: str,
        kind: type[R],
        out_dir: Path,
        inputs: Mapping[str, Path],
        options: Mapping[str, str] | None = None,
        listen: Listener | None = None,
    ) -> R:
        """Run a stage in a child process of its own, as `making.run_stage_child` does."""
        job = Job(
            stage=stage,
            spec=self.spec,
            inputs={"base": self.base.path, **inputs},
            out_dir=out_dir,
            options=dict(options or {}),
        )
        return making.run_stage_child(package, job, kind, self.store, listen)

    def note(self, line: StageLine) -> None:
        """Add a stage to the account and say it in the log."""
        self.lines.append(line)
        logger.info("%s %s in %.1f s: %s", line.stage, line.status, line.seconds, line.made)

    def skip(self, stages: Sequence[str], why: str) -> None:
        """Say of stages that they were left out, and why."""
        for stage in stages:
            self.note(StageLine(stage=stage, status="skipped", seconds=0.0, made=why))

    def update(self, **facts: object) -> None:
        """Set fields of the run's record."""
        self.record = self.record.model_copy(update=facts)

    def save(self) -> None:
        """Write the account as it stands."""
        self.update(stages=tuple(self.lines), seconds=round(time.monotonic() - self.started, 1))
        save_run(self.settings.store_root, self.record)


@contextmanager
def account(run: Run) -> Iterator[None]:
    """Keep the account of a run, however it ends."""
    try:
        yield
    except BaseException as error:
        status = error.exit_code if isinstance(error, TunelineError) else ExitCode.FAILED
        missing = [stage for stage in STAGES if stage not in {line.stage for line in run.lines}]
        run.update(error=str(error) or type(error).__name__, exit_code=status)
        run.skip(missing, "not reached")
        if run.live is not None:
            run.live.finish(RunStatus.FAILED if isinstance(error, Exception) else RunStatus.KILLED)
        raise
    finally:
        run.save()


def first_line(error: BaseException) -> str:
    """Say an error in one line; an interruption has no words of its own."""
    return (str(error) or type(error).__name__).splitlines()[0]


def git_commit(environment: Mapping[str, str] = os.environ) -> str:
    """Commit of the working copy, with `+` when it has changes; what CI names in `GIT_COMMIT` where there is none."""
    import subprocess

    described = subprocess.run(
        ["git", "describe", "--always", "--abbrev=40", "--dirty=+"], capture_output=True, text=True, check=False
    )
    return described.stdout.strip() or environment.get("GIT_COMMIT", "unknown")
