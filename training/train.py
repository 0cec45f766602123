"""The stage `train`: prepared rows and a plan in, trained weights out, whatever interrupts it in between."""

import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from accelerate import PartialState
from transformers import AutoTokenizer, PrinterCallback, set_seed

from training import adapters, admission, checkpoints, low_rank, metrics, nf4, pissa, sharding, weights
from training import held_out as held_out_loss
from training.attention import training_attention
from training.base_model import load_base
from training.callbacks import Peak, Preemption, Progress, SealCheckpoints, StopOnPreemption
from training.compilation import compile_layers
from training.coverage import coverage, describe
from training.data import TrainingRows, load_rows
from training.facts import facts_of
from training.faults import device_watched, disk_watched
from training.held_out import HeldOutLoss
from training.memory import memory_watched, peak_memory_bytes
from training.movement import Movement
from training.objectives import arguments_of, make_engine
from training.precision import (
    Precision,
    choose_precision,
    has_fast_bfloat16,
    keep_freed_memory,
    training_device,
    use_granted_threads,
)
from training.preflight import PreflightSteps
from training.stall import StallWatch
from training.watchdogs import Watchdogs
from tuneline.contracts.artifacts import Adapter, Plan, Preflight, PreparedData
from tuneline.contracts.jobs import Job, JobInterrupted, JobStatus, ProgressEvent, Reporter
from tuneline.contracts.ladder import plan_on, read_ladder
from tuneline.contracts.objectives import WITH_REFERENCE, Objective, objective_of
from tuneline.contracts.store import read_record


@dataclass(frozen=True)
class Setup:
    """What a training works with, loaded."""

    objective: Objective
    model: Any
    reference: Any
    """Frozen copy of the base where every weight is trained towards preferences, else None."""
    arguments: Any
    rows: TrainingRows
    nf4_modules: tuple[str, ...]
    precision: Precision
    facts: Mapping[str, str]
    """What its weights depend on."""
    sharded: bool
    """Whether FSDP cuts the weights up over the ranks."""
    micro_batch_tokens: int
    """Of a micro-batch at most, padding included."""
    joined: bool
    """Whether the rows of a micro-batch are put end to end, without padding."""


@dataclass(frozen=True)
class Start:
    """Where a training begins: nowhere, or at a checkpoint."""

    checkpoint: Path | None = None
    step: int = 0
    train_seconds: float = 0.0


def train(job: Job, report: Reporter) -> Adapter:
    """Train, from the newest whole checkpoint in `job.out_dir` if there is one.

    Raises:
        UserError: when a target module does not exist or cannot be adapted.
        JobInterrupted: pre-empted by SIGTERM (a checkpoint is saved), diverged, or out of memory.
    """
    use_granted_threads()
    keep_freed_memory()
    plan = plan_on(read_record(job.inputs["plan"], Plan), read_ladder(job.out_dir))
    with Preemption(plan.optimizer_steps) as preemption:
        setup = _set_up(job, plan)
        start = _find_start(job.out_dir, setup.facts)
        note = f"resumed from step {start.step}" if start.checkpoint else "preflight: measuring memory and speed"
        report(ProgressEvent(done=start.step, planned=plan.optimizer_steps, unit="steps", note=note))
        held_out = _held_out(job, setup)
        progress = _progress(job, plan, setup, start, report, held_out)
        stall = StallWatch()
        trainer = _trainer(job, setup, progress, preemption, held_out, stall)
        _measure_first(job, plan, trainer, setup.rows, report, preemption)
        preemption.in_steps = True

        def out_of_memory(step: int) -> None:
            report(ProgressEvent(done=step, planned=plan.optimizer_steps, unit="steps", note="out of memory"))

        def steps_done() -> int:
            return int(trainer.state.global_step)

        planned = plan.optimizer_steps
        with (
            stall,
            disk_watched(job.out_dir),
            device_watched(steps_done, planned),
            memory_watched(steps_done, planned, out_of_memory),
        ):
            trainer.train(resume_from_checkpoint=str(start.checkpoint) if start.checkpoint else None)
        if not held_out.stopped_early:
            _check_end(trainer.state.global_step, plan.optimizer_steps, preemption)
        return _finish(job, trainer, setup, progress.seconds, start.step, held_out)


def _set_up(job: Job, plan: Plan) -> Setup:
    spec = job.spec
    device = training_device()
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    precision = choose_precision(spec.model.dtype, device, fast_bfloat16=has_fast_bfloat16(device))
    folder = job.out_dir / checkpoints.FOLDER
    # Made before the model: on several ranks this is what starts their process group.
    prepared = read_record(job.inputs["prepared"], PreparedData)
    objective = objective_of(spec.training.objective, prepared.kind)
    arguments = arguments_of(objective, spec.training, plan, prepared, precision, folder, processes=processes)
    set_seed(spec.training.seed)  # decides the adapter's first values
    sharded = spec.training.fsdp and processes > 1
    attention = training_attention(spec.model.attention, precision)
    model = load_base(job.inputs["base"], spec.adapter.method, precision, attention, sharded=sharded)
    nf4_modules = nf4.quantised_modules(model)
    if spec.adapter.method != "full":
        model = adapters.add_adapter(model, spec.adapter, folder / pissa.START)
    if PartialState().is_main_process:
        print(describe(coverage(model)), flush=True)
    if spec.training.compile:
        compile_layers(model, device)
    elif device == "cpu" and not sharded:
        low_rank.fuse(model)
    batch_rows = plan.micro_batch_rows * plan.accumulation_steps * processes
    rows = load_rows(
        job.inputs["prepared"], plan.optimizer_steps, batch_rows, spec.training.seed, objective, processes
    )
    reference = None
    if objective in WITH_REFERENCE and spec.adapter.method == "full":
        reference = load_base(job.inputs["base"], "full", precision, attention, sharded=sharded)
        reference.requires_grad_(False).eval()
    facts = facts_of(spec, plan, prepared)
    micro_batch_tokens = plan.micro_batch_rows * prepared.longest_tokens
    return Setup(
        objective,
        model,
        reference,
        arguments,
        rows,
        nf4_modules,
        precision,
        facts,
        sharded,
        micro_batch_tokens,
        joined=plan.packing,
    )


def _find_start(out_dir: Path, facts: Mapping[str, str]) -> Start:
    folder = out_dir / checkpoints.FOLDER
    with PartialState().main_process_first():  # one rank deletes what is torn before the others look
        found = checkpoints.newest_whole(folder)
    if found:
        checkpoints.check_same_training(found[1], facts, folder)
    start = Start(found[0], found[1].step, found[1].train_seconds) if found else Start()
    if PartialState().is_main_process:
        metrics.forget_after(out_dir / Adapter.METRICS, start.step)
        held_out_loss.forget_after(out_dir, start.step)
    PartialState().wait_for_everyone()
    return start


def _held_out(job: Job, setup: Setup) -> HeldOutLoss:
    asked = job.spec.training.held_out_loss_every_optimizer_steps is not None
    batches = held_out_loss.read_batches(job.inputs["prepared"]) if asked else []
    return HeldOutLoss(job.spec.training, batches, setup.precision, job.out_dir)


def _progress(job: Job, plan: Plan, setup: Setup, start: Start, report: Reporter, held_out: HeldOutLoss) -> Progress:
    peak = None
    if setup.precision.device == "cuda" and plan.peak_flops_per_second:
        field: Literal["share_of_peak_4n", "share_of_peak_6n"]
        field = "share_of_peak_6n" if job.spec.adapter.method == "full" else "share_of_peak_4n"
        peak = Peak(plan.peak_flops_per_second / plan.model_flops_per_token, field)
    metrics_file = job.out_dir / Adapter.METRICS
    return Progress(report, metrics_file, setup.rows.tokens_after_step, start.train_seconds, peak, held_out.at)


def _trainer(
    job: Job, setup: Setup, progress: Progress, preemption: Preemption, held_out: HeldOutLoss, stall: StallWatch
) -> Any:
    tokenizer = AutoTokenizer.from_pretrained(job.inputs["prepared"] / PreparedData.TOKENIZER)
    if tokenizer.pad_token_id is None:  # any token serves: padding is masked, and its label ignored
        tokenizer.pad_token = tokenizer.eos_token
    folder = job.out_dir / checkpoints.FOLDER
    before = adapters.trainable_values(setup.model)
    if setup.sharded:
        sharding.allow_on_cpu()
    trainer = make_engine(
        setup.objective,
        job.spec.training,
        tokenizer,
        setup.reference,
        micro_batch_tokens=setup.micro_batch_tokens,
        joined=setup.joined,
        model=setup.model,
        args=setup.arguments,
        train_dataset=setup.rows.dataset,
        callbacks=[
            Movement(),
            StopOnPreemption(preemption),
            held_out,  # before what logs its figure and saves its best
            _watchdogs(job, setup),  # before what logs: a loss that is no number is no metric
            progress,
            SealCheckpoints(folder, job.spec.training.keep_checkpoints, progress, setup.facts, held_out.best_step),
            stall,
        ],
    )
    adapters.put_back(before)
    trainer.remove_callback(PrinterCallback)  # `progress` says it all, in the metrics file
    trainer.up_ratio = job.spec.adapter.lora_plus_ratio
    if setup.sharded:
        sharding.reduce_in_float32(trainer, setup.precision)
    return trainer


def _watchdogs(job: Job, setup: Setup) -> Watchdogs:
    history = metrics.read(job.out_dir / Adapter.METRICS)
    return Watchdogs(job.out_dir, setup.rows.row_ids, history, stop=job.spec.training.watchdogs == "stop")


def _measure_first(
    job: Job, plan: Plan, trainer: Any, rows: TrainingRows, report: Reporter, preemption: Preemption
) -> None:
    """Have the trainer measure itself before its first step, and hold the figures against the budget."""

    def accept(found: Preflight) -> None:
        measured = admission.priced(found, plan)
        if trainer.is_world_process_zero():
            report(admission.event_of(measured, plan))
        admission.check_budget(measured, job.spec.budget, plan)
        if trainer.is_world_process_zero():
            admission.keep(measured, job.out_dir)

    steps = PreflightSteps(trainer, rows.tokens_after_step[-1], rows.row_tokens, accept, lambda: preemption.requested)
    trainer.callback_handler.callbacks.insert(0, steps)


def _check_end(done: int, planned: int, preemption: Preemption) -> None:
    """Compare steps: after a stop asked for by a callback, `Trainer.train` returns as if it had finished."""
    if done < planned and preemption.requested:
        raise JobInterrupted(JobStatus.PREEMPTED, f"SIGTERM: saved at step {done} of {planned}", done, planned)
    if done != planned:
        raise JobInterrupted(JobStatus.FAILED, f"training stopped at step {done} of {planned}", done, planned)


def _finish(
    job: Job, trainer: Any, setup: Setup, train_seconds: float, resumed_from_step: int, held_out: HeldOutLoss
) -> Adapter:
    last_step = trainer.state.global_step
    found = held_out_loss.summary_of(held_out.points, job.spec.training, last_step)
    if found and found.weights_of_step != last_step:
        best = checkpoints.at_step(job.out_dir / checkpoints.FOLDER, found.weights_of_step)
        trainer.state.best_model_checkpoint = str(best)
        trainer._load_best_model()
    model = trainer.accelerator.unwrap_model(trainer.model)
    folder = job.out_dir / Adapter.WEIGHTS
    preflight, ladder = admission.read_kept(job.out_dir), read_ladder(job.out_dir)
    state = trainer.accelerator.get_state_dict(trainer.model) if trainer.is_fsdp_enabled else None
    if trainer.is_world_process_zero():
        apart = job.spec.adapter.initialisation == "pissa"
        start = job.out_dir / checkpoints.FOLDER / pissa.START if apart else None
        weights.save_trained(model, state, job.spec.model.base, folder, start)
        weights.save_as_trained(job.out_dir, model, setup.precision, setup.nf4_modules, apart=apart)
        shutil.rmtree(job.out_dir / checkpoints.FOLDER, ignore_errors=True)
    trainer.accelerator.wait_for_everyone()
    logged = metrics.read(job.out_dir / Adapter.METRICS)
    return Adapter(
        method=job.spec.adapter.method,
        optimizer_steps=last_step,
        train_tokens=setup.rows.tokens_after_step[last_step],
        train_seconds=train_seconds,
        first_loss=logged[0].loss,
        last_loss=logged[-1].loss,
        resumed_from_step=resumed_from_step,
        peak_memory_bytes=peak_memory_bytes(setup.precision.device),
        trainable_parameters=sum(parameter.numel() for parameter in adapters.trainable_parameters(model)),
        coverage=coverage(model),
        weights_sha256=weights.weights_sha256(folder),
        preflight=preflight,
        rungs=ladder.rungs,
        held_out=found,
    )
