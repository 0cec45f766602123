"""LLaMA-Factory's `run_exp` with LoRA: as it comes, and as best set up on a CPU by hand."""

import json
from typing import Any

from benchmarks.peers.training_protocol import ALPHA, RANK, TrainingDriver, learned_tokens, trainer_callback

VARIANTS: dict[str, dict[str, Any]] = {
    "defaults": {},
    "tuned": {"bf16": True, "disable_gradient_checkpointing": True, "train_sampling_strategy": "group_by_length"},
}


def main() -> None:
    driver = TrainingDriver()
    task = driver.task
    from llamafactory.train import tuner
    from llamafactory.train.sft import workflow
    from transformers import Trainer

    columns = {
        "file_name": task.train,
        "formatting": "sharegpt",
        "columns": {"messages": "messages"},
        "tags": {"role_tag": "role", "content_tag": "content", "user_tag": "user", "assistant_tag": "assistant"},
    }
    (task.work_dir / "dataset_info.json").write_text(json.dumps({"rows": columns}), encoding="utf-8")
    seen: list[Trainer] = []
    made = workflow.CustomSeq2SeqTrainer.__init__

    def keep(trainer: Trainer, *args: Any, **options: Any) -> None:
        made(trainer, *args, **options)
        seen.append(trainer)

    workflow.CustomSeq2SeqTrainer.__init__ = keep
    clock = trainer_callback(driver)
    arguments = {
        "stage": "sft",
        "do_train": True,
        "finetuning_type": "lora",
        "lora_rank": RANK,
        "lora_alpha": ALPHA,
        "lora_target": "all",
        "model_name_or_path": task.model,
        "dataset": "rows",
        "dataset_dir": str(task.work_dir),
        "template": "qwen",
        "cutoff_len": task.max_length_tokens,
        "output_dir": str(task.work_dir / "out"),
        "per_device_train_batch_size": task.batch_rows,
        "num_train_epochs": 1,
        "learning_rate": task.learning_rate,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "use_cpu": True,
        **VARIANTS[task.variant],
    }
    tuner.run_exp(args=arguments, callbacks=[clock])
    (trainer,) = seen
    history = [line["loss"] for line in trainer.state.log_history if "loss" in line]
    driver.done(
        seconds=clock.seconds,
        cpu_seconds=clock.cpu_seconds,
        steps=trainer.state.global_step,
        learned_tokens=learned_tokens(trainer.train_dataset),
        first_loss=history[0],
        last_loss=history[-1],
    )


if __name__ == "__main__":
    main()
