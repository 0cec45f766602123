"""Which of TRL's trainers teaches what the rows say, and the settings that it alone has."""

from pathlib import Path
from typing import Any

from trl import DPOConfig, KTOConfig

from training.engine import Engine, sft_arguments, shared_arguments, step_arguments
from training.micro_batches import StepCollator
from training.precision import Precision
from training.preference_engines import OddsRatioEngine, PairEngine, UnpairedEngine
from training.preference_rows import PairCollator, UnpairedCollator
from tuneline.contracts.artifacts import Plan, PreparedData
from tuneline.contracts.objectives import Objective, loss_weights
from tuneline.contracts.spec import TrainingSpec


def arguments_of(
    objective: Objective,
    spec: TrainingSpec,
    plan: Plan,
    prepared: PreparedData,
    precision: Precision,
    checkpoints: Path,
    *,
    processes: int = 1,
) -> Any:
    """Translate config and plan for the trainer of an objective.

    Args:
        objective: as `objective_of` chose it.
        spec: section `training`.
        plan: batch and steps.
        prepared: record of the rows.
        precision: number formats.
        checkpoints: folder of the checkpoints.
        processes: ranks that train together.
    """
    shared = shared_arguments(spec, plan, precision, checkpoints, processes=processes)
    own_rows = {"max_length": None, "remove_unused_columns": False}
    match objective:
        case "sft":
            return step_arguments(shared, plan)
        case "orpo":
            arguments = sft_arguments(shared)
            arguments.remove_unused_columns = False
            return arguments
        case "dpo":
            return DPOConfig(**shared, **own_rows, beta=spec.preference_beta)
        case "kto":
            weights = loss_weights(prepared.desirable_rows, prepared.train_rows - prepared.desirable_rows)
            return KTOConfig(
                **shared,
                **own_rows,
                beta=spec.preference_beta,
                loss_type="apo_zero_unpaired",  # UnpairedEngine puts `kto` in its place
                desirable_weight=weights.desirable,
                undesirable_weight=weights.undesirable,
            )


def make_engine(
    objective: Objective,
    spec: TrainingSpec,
    tokenizer: Any,
    reference: Any,
    *,
    micro_batch_tokens: int,
    joined: bool,
    **options: Any,
) -> Any:
    """Build the trainer of an objective.

    Args:
        objective: as `objective_of` chose it.
        spec: section `training`.
        tokenizer: with a padding token.
        reference: frozen copy of the base where every weight is trained towards preferences, else None.
        micro_batch_tokens: what `Engine` cuts its steps by; preferences are cut by rows.
        joined: whether `Engine` puts rows end to end.
        options: model, arguments, rows and callbacks, which every trainer takes.
    """
    options["processing_class"] = tokenizer
    match objective:
        case "sft":
            collate = StepCollator(tokenizer.pad_token_id, micro_batch_tokens, joined)
            return Engine(data_collator=collate, **options)
        case "orpo":
            return OddsRatioEngine(spec.preference_beta, data_collator=PairCollator(tokenizer.pad_token_id), **options)
        case "dpo":
            return PairEngine(ref_model=reference, data_collator=PairCollator(tokenizer.pad_token_id), **options)
        case "kto":
            collator = UnpairedCollator(tokenizer.pad_token_id)
            return UnpairedEngine(ref_model=reference, data_collator=collator, **options)
