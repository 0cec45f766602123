"""One Prefect task for each stage: unpack, call, hand on. Nothing is computed or decided here."""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import wraps
from pathlib import Path
from typing import Concatenate, Generic, ParamSpec, TypeVar, cast

from prefect import task
from prefect.cache_policies import NO_CACHE
from prefect.states import Completed

from evaluation.gate import decide as decide_promotion
from evaluation.items import read_items
from flows import identity, publishing
from flows.attempts import Training, train_in_memory
from flows.context import Run, first_line
from flows.progress import Listener, event_of, shown
from flows.summaries import summarise, summarise_training
from flows.system_metrics import system_metrics
from tuneline.contracts.artifacts import (
    Adapter,
    EvalReport,
    MergedModel,
    Plan,
    PreparedData,
    Record,
    RegisteredModel,
    Release,
    ServingImage,
    SmokeReport,
    Verdict,
)
from tuneline.contracts.jobs import ProgressEvent
from tuneline.contracts.run_record import StageLine
from tuneline.contracts.store import Stored
from tuneline.planning.run import run as plan_training
from tuneline.serving.base_image import read_base_image
from tuneline.serving.smoke import VerifyOptions
from tuneline.serving.smoke import verify as question_image

T = TypeVar("T")
R = TypeVar("R", bound=Record)
P = ParamSpec("P")


@dataclass(frozen=True)
class Done(Generic[T]):
    """What a stage hands on, and its line in the account; `value` is None when the stage had to be left out."""

    value: T
    made: str
    found: bool = False
    fingerprint: str | None = None
    path: Path | None = None
    skipped: bool = False


def _done(stored: Stored[R]) -> Done[Stored[R]]:
    return Done(stored, summarise(stored.record), stored.found, stored.fingerprint, stored.path)


def stage(body: Callable[Concatenate[Run, P], Done[T]]) -> Callable[Concatenate[Run, P], T]:
    """Make a stage a Prefect task that keeps the run's account.

    What the store already has ends as `Cached`, the name that Prefect gives such tasks itself. Prefect's own cache
    stays off: it would believe a key without looking whether the files are still there.
    """
    name = body.__name__

    @task(name=name, cache_policy=NO_CACHE, persist_result=False)
    def run_stage(run: Run, *args: P.args, **kwargs: P.kwargs) -> object:
        done = body(run, *args, **kwargs)
        return Completed(name="Cached", message=done.made, data=done) if done.found else done

    @wraps(body)
    def call(run: Run, *args: P.args, **kwargs: P.kwargs) -> T:
        started = time.monotonic()
        try:
            done = cast(Done[T], run_stage(run, *args, **kwargs, return_state=True).result())
        except BaseException as error:
            seconds = round(time.monotonic() - started, 1)
            run.note(StageLine(stage=name, status="failed", seconds=seconds, made=first_line(error)))
            raise
        status = "skipped" if done.skipped else "found" if done.found else "made"
        run.note(
            StageLine(
                stage=name,
                status=status,
                seconds=round(time.monotonic() - started, 1),
                made=done.made,
                fingerprint=done.fingerprint,
                path=done.path,
            )
        )
        return done.value

    return cast(Callable[Concatenate[Run, P], T], call)


@stage
def prepare(run: Run) -> Done[Stored[PreparedData]]:
    """Render, mask, split and account for the rows."""

    def make(work: Path) -> PreparedData:
        return run.child("tuneline.data", "prepare", PreparedData, work, {})

    key = identity.prepare_identity(run.spec, run.base.tokenizer_sha256, run.source_sha256)
    return _done(run.obtain("prepare", key, PreparedData, make))


@stage
def plan(run: Run, prepared: Stored[PreparedData]) -> Done[Stored[Plan]]:
    """Estimate memory, time and money, and refuse what cannot be done."""

    def make(work: Path) -> Plan:
        return plan_training(run.spec, run.base.path, prepared.record, run.machine)

    key = identity.plan_identity(run.spec, prepared.fingerprint, run.machine)
    return _done(run.obtain("plan", key, Plan, make))


@stage
def train(run: Run, prepared: Stored[PreparedData], plan: Stored[Plan]) -> Done[Stored[Adapter]]:
    """Train the adapter; an interrupted attempt goes on from its newest whole checkpoint."""
    live = publishing.open_tracking(run, prepared)
    run.live = live
    inputs = {"prepared": prepared.path, "plan": plan.path}

    def make(work: Path) -> Adapter:
        def attempt(reached: Listener) -> Adapter:
            def listen(event: ProgressEvent) -> None:
                reached(event)
                live.log_batch(event.done, event.metrics)

            return run.child("training", "train", Adapter, work, inputs, listen=listen)

        training = Training(run.spec, plan.record, prepared.record)
        with system_metrics(live):
            return train_in_memory(training, work, attempt, lambda ladder: publishing.tag_ladder(live, ladder.rungs))

    key = identity.train_identity(run.spec, run.base.sha256, prepared.fingerprint)
    stored = run.obtain("train", key, Adapter, make, keep=True)
    publishing.log_training(live, stored, plan)
    return replace(_done(stored), made=summarise_training(stored.record, plan.record))


@stage
def merge(run: Run, prepared: Stored[PreparedData], adapter: Stored[Adapter]) -> Done[Stored[MergedModel]]:
    """Merge from files and prove that the merged weights answer as the trained model does."""

    def make(work: Path) -> MergedModel:
        return run.child("training", "merge", MergedModel, work, {"prepared": prepared.path, "adapter": adapter.path})

    return _done(run.obtain("merge", identity.merge_identity(run.spec, adapter.fingerprint), MergedModel, make))


@stage
def evaluate(run: Run, prepared: Stored[PreparedData], merged: Stored[MergedModel]) -> Done[Stored[EvalReport]]:
    """Ask base, candidate and champion the same questions."""
    champion = publishing.champion_to_beat(run, merged)
    inputs = {"prepared": prepared.path, "merged": merged.path}
    options = {}
    if champion is not None:
        inputs["champion"] = champion.model_dir
        options["champion_version"] = champion.version

    def make(work: Path) -> EvalReport:
        return run.child("evaluation", "evaluate", EvalReport, work, inputs, options)

    beaten = champion.merged_fingerprint if champion else None
    key = identity.evaluate_identity(run.spec, prepared.fingerprint, merged.fingerprint, beaten)
    return _done(run.obtain("evaluate", key, EvalReport, make))


@stage
def decide(run: Run, evaluation: Stored[EvalReport]) -> Done[Stored[Verdict]]:
    """Promote, reject, or say what evidence is missing."""

    def make(work: Path) -> Verdict:
        items = read_items(evaluation.path / EvalReport.ITEMS)
        return decide_promotion(evaluation.record, items, run.spec.gate)

    return _done(run.obtain("decide", identity.decide_identity(run.spec, evaluation.fingerprint), Verdict, make))


@stage
def register(
    run: Run,
    prepared: Stored[PreparedData],
    adapter: Stored[Adapter],
    merged: Stored[MergedModel],
    verdict: Stored[Verdict],
) -> Done[RegisteredModel]:
    """Make a version in MLflow with its lineage; `challenger` when the verdict is PROMOTE."""
    version, found = publishing.register_version(run, prepared, adapter, merged, verdict)
    run.update(model_version=version.version, mlflow_run_id=version.run_id)
    return Done(version, summarise(version), found)


@stage
def package(
    run: Run,
    adapter: Stored[Adapter],
    merged: Stored[MergedModel],
    verdict: Stored[Verdict],
    version: RegisteredModel,
) -> Done[Stored[ServingImage] | None]:
    """Put the merged weights on the vLLM base, as layers of their own."""
    unavailable = publishing.why_no_engine()
    if unavailable:
        return Done(None, unavailable, skipped=True)
    with shown("package") as show:
        base = read_base_image(run.spec.serving.base_image, run.settings.base_image_cache, event_of(show))

    def make(work: Path) -> ServingImage:
        options = publishing.provenance_options(run, adapter, merged, verdict)
        return run.child("tuneline.serving", "package", ServingImage, work, {"merged": merged.path}, options)

    key = identity.package_identity(run.spec, merged.fingerprint, base.image_id)
    image = run.obtain("package", key, ServingImage, make)
    publishing.note_image(run, version, image.record)
    return Done(image, summarise(image.record), image.found, image.fingerprint, image.path)


@stage
def verify(
    run: Run,
    image: Stored[ServingImage] | None,
    merged: Stored[MergedModel],
    evaluation: Stored[EvalReport],
    version: RegisteredModel,
) -> Done[Stored[SmokeReport] | None]:
    """Start the image, question it, compare its answers with training's, stop it."""
    if image is None:
        return Done(None, "there is no image", skipped=True)
    layout, probes = image.path / ServingImage.LAYOUT, evaluation.path / EvalReport.PROBES
    options = VerifyOptions(
        model_name=run.spec.model_name,
        weights_sha256=merged.record.certificate.weights_sha256,
        max_new_tokens=run.spec.evaluation.max_new_tokens,
        drain_seconds=run.spec.serving.drain_seconds,
        probes=run.spec.serving.probes,
        port=run.settings.serve_port,
        gpus=run.spec.budget.gpu != "none",
    )

    def make(work: Path) -> SmokeReport:
        with shown("verify") as show:
            report = question_image(image.record, layout, probes, options, event_of(show))
        publishing.note_smoke(run, version, report)
        return report

    smoke = run.obtain("verify", identity.verify_identity(image.fingerprint, evaluation.fingerprint), SmokeReport, make)
    return Done(smoke, summarise(smoke.record), smoke.found, smoke.fingerprint, smoke.path)


@stage
def release(
    run: Run, version: RegisteredModel, verdict: Stored[Verdict], smoke: Stored[SmokeReport] | None
) -> Done[Release]:
    """Move the alias `champion`, if the verdict is PROMOTE and the image passed."""
    released = publishing.release_version(run, version, verdict.record, smoke.record if smoke else None)
    run.update(champion_version=released.champion_version)
    return Done(released, summarise(released), found=not released.moved and smoke is not None, skipped=smoke is None)
