"""What a run tells the registry, and asks it: one place where artifacts meet MLflow and the container engine."""

import getpass
import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from flows.context import Run, git_commit
from tuneline.contracts.artifacts import (
    Adapter,
    MemoryRung,
    MergedModel,
    Outcome,
    Plan,
    PreparedData,
    RegisteredModel,
    Release,
    ServingImage,
    SmokeReport,
    Verdict,
)
from tuneline.contracts.errors import ServiceUnavailable, StageFailed, UserError
from tuneline.contracts.fingerprint import canonical_json, fingerprint, sha256_text
from tuneline.contracts.store import Stored
from tuneline.registry.aliases import champion, promote, set_challenger
from tuneline.registry.lineage import Lineage
from tuneline.registry.tracking import LiveRun, flat_parameters, start_run
from tuneline.registry.versions import (
    RegistrationRequest,
    record_image,
    record_smoke,
    register,
    version_info,
)
from tuneline.serving.engine import require_engine

TAG_CHARACTERS = 1000
"""Of an error's words on an MLflow tag, which holds 8000 at most."""
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Champion:
    """The version that the candidate must beat, and where its weights are."""

    version: str
    merged_fingerprint: str
    model_dir: Path


def open_tracking(run: Run, prepared: Stored[PreparedData]) -> LiveRun:
    """Open the MLflow run of this config on this data, or the one that an earlier attempt left."""
    key = fingerprint("run", run.spec, [run.base.sha256, prepared.fingerprint], [], [])
    live = start_run(run.registry, run.spec.registry.experiment, run.spec.name, key, flat_parameters(run.spec))
    live.log_dataset("train", run.source_sha256["train"], ", ".join(run.spec.data.train_sources), "training")
    return live


def log_training(live: LiveRun, adapter: Stored[Adapter], plan: Stored[Plan]) -> None:
    """Log what the trained artifact knows: the metrics of a found one, and measured beside planned."""
    for line in (adapter.path / Adapter.METRICS).read_text(encoding="utf-8").splitlines():
        metrics = json.loads(line)
        live.log_batch(int(metrics.pop("step")), metrics)
    record, planned = adapter.record, plan.record
    figures = {
        "peak_memory_bytes": record.peak_memory_bytes,
        "planned_memory_bytes": planned.memory_bytes.expected,
        "measured_tokens_per_second": record.train_tokens / max(record.train_seconds, 1e-9),
        "planned_tokens_per_second": planned.tokens_per_second.expected,
        "memory_rungs": len(record.rungs),
    }
    if record.preflight:
        measured = record.preflight.model_dump(exclude_none=True)
        figures |= {f"preflight_{name}": value for name, value in measured.items()}
    live.log_batch(record.optimizer_steps, figures)
    tag_ladder(live, record.rungs)


def tag_ladder(live: LiveRun, rungs: Sequence[MemoryRung]) -> None:
    """Name on the MLflow run each rung that its training had to climb; a server that is away is a warning."""
    tags = {
        f"tuneline.memory_rung.{number}": f"{rung.action}, after step {rung.after_step}: {rung.cause}"[:TAG_CHARACTERS]
        for number, rung in enumerate(rungs, 1)
    }
    try:
        if tags:
            live.set_tags(tags)
    except ServiceUnavailable as error:
        logger.warning("the rungs of the memory ladder are not tagged: %s", error)


def champion_to_beat(run: Run, merged: Stored[MergedModel]) -> Champion | None:
    """Find the version that this model is compared with.

    A model is not compared with itself: when it is the champion already, its rival is the one that it beat, so that the
    same run asked for again finds the same evaluation.

    Raises:
        UserError: when the champion's weights are not in this store.
    """
    name = run.spec.model_name
    rival = champion(run.registry, name)
    if rival is not None and rival.merged_fingerprint == merged.fingerprint:
        beaten = rival.compared_champion
        rival = version_info(run.registry, name, beaten) if beaten else None
    if rival is None:
        return None
    weights = run.store.find("merge", rival.merged_fingerprint or "", MergedModel)
    if weights is None:
        raise UserError.of(
            f"the weights of the champion, version {rival.version}, are not in this store: it cannot be compared with",
            f"{name} in {run.settings.store_root}",
            "set TUNELINE_HOME to the store that made it, or `tuneline rollback` to a version that is here",
        )
    return Champion(rival.version, weights.fingerprint, weights.path / MergedModel.MODEL)


def register_version(
    run: Run,
    prepared: Stored[PreparedData],
    adapter: Stored[Adapter],
    merged: Stored[MergedModel],
    verdict: Stored[Verdict],
) -> tuple[RegisteredModel, bool]:
    """Make a version with its lineage, and point `challenger` at it when the verdict is PROMOTE.

    Returns:
        The version, and whether it was there already.
    """
    spec = run.spec
    assert run.live is not None, "train opens the MLflow run"
    lineage = Lineage(
        fingerprint=fingerprint("register", spec.model_name, [merged.fingerprint, verdict.fingerprint], [], []),
        run=run.record.run_id,
        config_sha256=sha256_text(canonical_json(spec)),
        data_receipt_sha256=prepared.record.receipt_sha256,
        base=spec.model.base,
        base_revision=spec.model.revision,
        base_sha256=run.base.sha256,
        adapter_sha256=adapter.record.weights_sha256,
        merged_sha256=merged.record.certificate.weights_sha256,
        merged_fingerprint=merged.fingerprint,
        certificate=merged.record.certificate,
        verdict=verdict.record,
        git_commit=git_commit(),
    )
    request = RegistrationRequest(
        name=spec.model_name,
        run_id=run.live.run_id,
        lineage=lineage,
        adapter=None if spec.adapter.method == "full" else adapter.path / Adapter.WEIGHTS,
        receipt=prepared.path / PreparedData.RECEIPT,
        config_yaml=spec.model_dump_json(indent=1),
    )
    version = register(run.registry, request)
    info = version_info(run.registry, version.name, version.version)
    if verdict.record.outcome is Outcome.PROMOTE:
        set_challenger(run.registry, version.name, version.version)
        info = version_info(run.registry, version.name, version.version)
    aliases = info.aliases
    return version.model_copy(update={"alias": aliases[0] if aliases else None}), info.run != run.record.run_id


def why_no_engine() -> str | None:
    """Say why no image can be made here; None where an engine answers."""
    try:
        require_engine()
    except ServiceUnavailable as error:
        return f"no container engine: {error.problems[0].what}"
    return None


def provenance_options(
    run: Run, adapter: Stored[Adapter], merged: Stored[MergedModel], verdict: Stored[Verdict]
) -> dict[str, str]:
    """Give the package stage what the image's labels say beside the model's own record."""
    prints = {line.stage: line.fingerprint for line in run.lines if line.fingerprint}
    return {
        "run_name": run.spec.name,
        "base_images": str(run.settings.base_image_cache),
        "verdict": verdict.record.outcome.value,
        "adapter_sha256": adapter.record.weights_sha256,
        "revision": git_commit(),
        "fingerprints": json.dumps(prints | {merged.stage: merged.fingerprint}),
    }


def note_image(run: Run, version: RegisteredModel, image: ServingImage) -> None:
    """Write the image's digest on the version."""
    record_image(run.registry, version.name, version.version, image.manifest_digest, image.reference)
    run.update(image_reference=image.reference, image_digest=image.manifest_digest)


def note_smoke(run: Run, version: RegisteredModel, smoke: SmokeReport) -> None:
    """Write the smoke report on the version; stop the run when a rung failed.

    Raises:
        StageFailed: naming the rungs.
    """
    record_smoke(run.registry, version.name, version.version, smoke)
    failed = [f"{rung.name} ({rung.figure}; {rung.detail})" for rung in smoke.rungs if not rung.passed]
    if failed:
        raise StageFailed("verify", "failed", f"version {version.version} stays challenger: {', '.join(failed)}")


def release_version(run: Run, version: RegisteredModel, verdict: Verdict, smoke: SmokeReport | None) -> Release:
    """Move `champion` to a version that the gate promotes and whose image passed."""
    if smoke is None:
        present = champion(run.registry, version.name)
        reason = (
            f"not verified: version {version.version} stays challenger; `tuneline image verify {run.spec.name}` "
            "goes on where there is an engine"
        )
        return Release(
            champion_version=present.version if present else None, previous_version=None, moved=False, reason=reason
        )
    why = verdict.reasons[0]
    return promote(run.registry, version.name, version.version, verdict.champion_version, getpass.getuser(), why)
