"""What a training works with, loaded; and where it begins."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accelerate import PartialState
from transformers import set_seed

from training import adapters, checkpoints, low_rank, metrics, nf4, pissa
from training import held_out as held_out_loss
from training.attention import training_attention
from training.base_model import load_base
from training.compilation import compile_layers
from training.coverage import coverage, describe
from training.data import TrainingRows, load_rows
from training.facts import facts_of
from training.objectives import arguments_of
from training.precision import Precision, choose_precision, has_fast_bfloat16, training_device
from tuneline.contracts.artifacts import Adapter, Plan, PreparedData
from tuneline.contracts.jobs import Job
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


def set_up(job: Job, plan: Plan) -> Setup:
    """Load all that a training works with.

    Raises:
        UserError: targets that do not exist or cannot be adapted, weights that are not those of the base's config.
    """
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
    rows = load_rows(job.inputs["prepared"], plan.optimizer_steps, batch_rows, spec.training.seed, objective, processes)
    reference = None
    if objective in WITH_REFERENCE and spec.adapter.method == "full":
        reference = load_base(job.inputs["base"], "full", precision, attention, sharded=sharded)
        reference.requires_grad_(False).eval()
    return Setup(
        objective=objective,
        model=model,
        reference=reference,
        arguments=arguments,
        rows=rows,
        nf4_modules=nf4_modules,
        precision=precision,
        facts=facts_of(spec, plan, prepared),
        sharded=sharded,
        micro_batch_tokens=plan.micro_batch_rows * prepared.longest_tokens,
        joined=plan.packing,
    )


def find_start(out_dir: Path, facts: Mapping[str, str]) -> Start:
    """Find the newest whole checkpoint, and forget what was measured after it.

    Raises:
        UserError: the checkpoint belongs to another training.
    """
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
