"""The stage `train`: prepared rows and a plan in, trained weights out, whatever interrupts it in between."""

import shutil
from typing import Any, Literal

from transformers import AutoTokenizer, PrinterCallback

from training import adapters, admission, checkpoints, metrics, pissa, sharding, weights
from training import held_out as held_out_loss
from training.callbacks import Peak, Preemption, Progress, SealCheckpoints, StopOnPreemption
from training.coverage import coverage
from training.data import TrainingRows
from training.faults import device_watched, disk_watched
from training.held_out import HeldOutLoss
from training.memory import memory_watched, peak_memory_bytes
from training.movement import Movement
from training.objectives import make_engine
from training.precision import keep_freed_memory, use_granted_threads
from training.preflight import PreflightSteps
from training.setup import Setup, Start, find_start, set_up
from training.stall import StallWatch
from training.watchdogs import Watchdogs
from tuneline.contracts.artifacts import Adapter, Plan, Preflight, PreparedData
from tuneline.contracts.jobs import Job, JobInterrupted, JobStatus, ProgressEvent, Reporter
from tuneline.contracts.ladder import plan_on, read_ladder
from tuneline.contracts.store import read_record


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
        setup = set_up(job, plan)
        start = find_start(job.out_dir, setup.facts)
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
