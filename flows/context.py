"""What the tasks of one run share: the config, the store, the services of this machine, and the account of the run."""

import logging
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TypeVar

from flows.launch import raise_for, run_child
from flows.progress import Listener, shown
from tuneline.contracts.artifacts import Record
from tuneline.contracts.errors import ExitCode, TunelineError
from tuneline.contracts.hashing import HashCache
from tuneline.contracts.jobs import OUTPUT, Job
from tuneline.contracts.run_record import STAGES, RunRecord, StageLine, new_run_id, save_run
from tuneline.contracts.settings import Settings
from tuneline.contracts.spec import RunSpec
from tuneline.contracts.spec_loading import load_spec
from tuneline.contracts.store import ArtifactStore, Stored
from tuneline.data.base_model import BaseModel, locate_base
from tuneline.data.sources import HUB_PREFIX, check_file
from tuneline.planning.hardware import Machine, this_machine
from tuneline.registry.connection import Registry, connect
from tuneline.registry.tracking import LiveRun, RunStatus

R = TypeVar("R", bound=Record)
logger = logging.getLogger("tuneline.run")


@dataclass(frozen=True)
class Inputs:
    """A config and what it names, found and readable."""

    spec: RunSpec
    base: BaseModel
    source_sha256: Mapping[str, str]


def open_inputs(config: str, overrides: Sequence[str], settings: Settings) -> Inputs:
    """Meet at the door what a user could have got wrong in config, base model and files.

    Raises:
        UserError: with every problem of the first of these that has any.
    """
    spec = load_spec(Path(config), overrides)
    hashes = HashCache(settings.home / "hashes.json")
    return Inputs(spec, locate_base(spec.model, hashes), _hash_sources(spec, hashes))


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
        """Find an artifact in the store, or make it there.

        Args:
            stage: the stage's name.
            fingerprint: the artifact's identity.
            kind: type of its record.
            make: writes the artifact's files into the folder that it is given and returns the record.
            keep: leave the folder of an interrupted attempt, for the next one to go on from.
        """
        found = self.store.find(stage, fingerprint, kind)
        if found is not None:
            return found
        with self.store.work(stage, fingerprint, keep=keep) as work:
            found = self.store.find(stage, fingerprint, kind)  # made by another run while this one waited for the lock
            if found is not None:
                return found
            started = time.monotonic()
            record = make(work)
            return self.store.commit(stage, fingerprint, work, record, time.monotonic() - started)

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
        """Run a stage in a child process of its own and return the record that it made.

        Raises:
            UserError: the child met input that a user can mend.
            StageFailed: it ended without its artifact.
        """
        job = Job(
            stage=stage,
            spec=self.spec,
            inputs={"base": self.base.path, **inputs},
            out_dir=out_dir,
            options=dict(options or {}),
        )
        job_dir = self.settings.store_root / "jobs" / out_dir.name
        with shown(stage) as show:
            result = run_child(package, job, job_dir, _both(show, listen))
        raise_for(result, stage, job_dir / OUTPUT)
        return kind.model_validate(result.artifact)

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


def _both(first: Listener, second: Listener | None) -> Listener:
    if second is None:
        return first

    def listen(event: object) -> None:
        first(event)  # type: ignore[arg-type]
        second(event)  # type: ignore[arg-type]

    return listen


def _hash_sources(spec: RunSpec, hashes: HashCache) -> dict[str, str]:
    """Hash the files of the data section; a Hub dataset counts by its name and revision."""
    named = {key: getattr(spec.data, key) for key in ("train", "held_out", "replay", "retention")}
    digests = {}
    for key, source in named.items():
        if source is None:
            continue
        if source.startswith(HUB_PREFIX):
            digests[key] = f"{source}@{spec.data.hub_revision}#{spec.data.hub_split}"
        else:
            digests[key] = hashes.sha256(check_file(source, f"data.{key}"))
    if spec.model.chat_template is not None:
        digests["chat_template"] = hashes.sha256(Path(spec.model.chat_template))
    return digests


def git_commit(environment: Mapping[str, str] = os.environ) -> str:
    """Commit of the working copy, with `+` when it has changes; what CI names in `GIT_COMMIT` where there is none."""
    import subprocess

    described = subprocess.run(
        ["git", "describe", "--always", "--abbrev=40", "--dirty=+"], capture_output=True, text=True, check=False
    )
    return described.stdout.strip() or environment.get("GIT_COMMIT", "unknown")
