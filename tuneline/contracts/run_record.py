"""What a run did, kept in the store for `tuneline show`: written when it ends, however it ends."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from tuneline.contracts.artifacts import Record
from tuneline.contracts.errors import UserError
from tuneline.contracts.store import write_whole

STAGES = (
    "prepare",
    "plan",
    "train",
    "merge",
    "evaluate",
    "decide",
    "register",
    "package",
    "verify",
    "release",
)


class StageLine(Record):
    """One stage of a run."""

    stage: str
    status: Literal["made", "found", "skipped", "failed"]
    seconds: float
    """Wall time in this run; a found artifact took longer when it was made."""
    made: str
    """What it made, in a few words and figures; for a skipped stage, why."""
    fingerprint: str | None = None
    path: Path | None = None


class RunRecord(Record):
    """A run from its config to where its results are."""

    run_id: str
    name: str
    config: str
    overrides: tuple[str, ...]
    started_at: str
    seconds: float
    exit_code: int
    outcome: str
    """PROMOTE, REJECT, INCONCLUSIVE, or FAILED."""
    error: str = ""
    reasons: tuple[str, ...] = ()
    stages: tuple[StageLine, ...] = ()
    model: str = ""
    model_version: str | None = None
    champion_version: str | None = None
    image_reference: str | None = None
    image_digest: str | None = None
    report: Path | None = None
    mlflow_run_id: str | None = None
    mlflow_tracking_uri: str = ""

    def line(self, stage: str) -> StageLine | None:
        """Return a stage's line, if the run came that far."""
        return next((line for line in self.stages if line.stage == stage), None)


def new_run_id(name: str) -> str:
    """Name a run after its config and the moment it starts (UTC)."""
    return f"{name}-{datetime.now(UTC):%Y%m%d-%H%M%S}"


def save_run(store_root: Path, record: RunRecord) -> Path:
    """Write the record; returns its path."""
    folder = store_root / "runs"
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{record.run_id}.json"
    write_whole(path, record.model_dump_json(indent=1))
    return path


def load_run(store_root: Path, run: str) -> RunRecord:
    """Read a run by its id, or the newest one of a name.

    Raises:
        UserError: when there is none; lists the newest runs.
    """
    folder = store_root / "runs"
    records = [RunRecord.model_validate_json(path.read_text(encoding="utf-8")) for path in folder.glob("*.json")]
    fitting = [record for record in records if run in (record.run_id, record.name)]
    if fitting:
        return max(fitting, key=lambda record: record.started_at)
    newest = sorted(records, key=lambda record: record.started_at, reverse=True)[:5]
    known = ", ".join(record.run_id for record in newest) or "there are none yet: `tuneline run CONFIG` makes one"
    raise UserError.of("no such run", run, f"the newest runs: {known}")
