"""The prepare stage alone, for a look at the data: the artifact that a run makes or finds, and no server is needed."""

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from flows.identity import prepare_identity
from flows.inputs import hash_sources, remembered_hashes
from flows.making import obtain, run_stage_child
from flows.progress import TERMINAL
from tuneline.contracts.artifacts import PreparedData
from tuneline.contracts.jobs import Job
from tuneline.contracts.receipt import Receipt
from tuneline.contracts.settings import Settings
from tuneline.contracts.spec_loading import load_spec
from tuneline.contracts.store import ArtifactStore
from tuneline.data.base_model import locate_tokenizer


@dataclass(frozen=True)
class Preparation:
    """Prepared data: its receipt, its folder, and whether it was found rather than made."""

    receipt: Receipt
    folder: Path
    found: bool
    seconds: float


def prepare_only(config: str, overrides: Sequence[str]) -> Preparation:
    """Prepare the data of a config; of the base model only the tokenizer is read.

    Raises:
        UserError: for every fault of config, tokenizer, sources and rows that a user can mend.
        StageFailed: when the stage ended without its artifact.
    """
    started = time.monotonic()
    os.environ[TERMINAL] = "1"
    settings = Settings.from_environment()
    spec = load_spec(Path(config), overrides)
    hashes = remembered_hashes(settings)
    tokenizer = locate_tokenizer(spec.model, hashes)
    key = prepare_identity(spec, tokenizer.sha256, hash_sources(spec, hashes))
    store = ArtifactStore(settings.store_root)

    def make(work: Path) -> PreparedData:
        job = Job(stage="prepare", spec=spec, inputs={"base": tokenizer.path}, out_dir=work)
        return run_stage_child("tuneline.data", job, PreparedData, store)

    stored = obtain(store, "prepare", key, PreparedData, make)
    receipt = Receipt.model_validate_json((stored.path / PreparedData.RECEIPT).read_text(encoding="utf-8"))
    return Preparation(receipt, stored.path, stored.found, time.monotonic() - started)
