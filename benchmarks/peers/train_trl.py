"""TRL's SFTTrainer with LoRA: as it comes, as best set up on a CPU by hand, and packed."""

from typing import Any

from benchmarks.peers.training_protocol import (
    ALPHA,
    IGNORED_LABEL,
    RANK,
    TrainingDriver,
    losses,
    trainer_callback,
)

VARIANTS: dict[str, dict[str, Any]] = {
    "defaults": {},
    "tuned": {"bf16": True, "gradient_checkpointing": False, "train_sampling_strategy": "group_by_length"},
    # One pack holds about as many tokens as eight rows; without a varlen kernel it attends across all of them.
    "packed": {"bf16": True, "gradient_checkpointing": False, "packing": True, "per_device_train_batch_size": 1},
}


def main() -> None:
    driver = TrainingDriver()
    task = driver.task
    from datasets import load_dataset
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import SFTConfig, SFTTrainer

    arguments = SFTConfig(
        output_dir=str(task.work_dir / "out"),
        max_length=task.max_length_tokens,
        num_train_epochs=1,
        learning_rate=task.learning_rate,
        assistant_only_loss=True,
        use_cpu=True,
        report_to="none",
        save_strategy="no",
        logging_steps=1,
        **VARIANTS[task.variant],
    )
    clock = trainer_callback(driver)
    trainer = SFTTrainer(
        model=AutoModelForCausalLM.from_pretrained(task.model),
        args=arguments,
        train_dataset=load_dataset("json", data_files=task.train, split="train"),
        processing_class=AutoTokenizer.from_pretrained(task.model),
        peft_config=LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules="all-linear", task_type="CAUSAL_LM"),
        callbacks=[clock],
    )
    learned = sum(_learned(row) for row in trainer.train_dataset)
    trainer.train()
    steps = trainer.state.global_step
    driver.done(
        seconds=clock.seconds,
        cpu_seconds=clock.cpu_seconds,
        steps=steps,
        learned_tokens=learned,
        **losses(trainer.state.log_history),
    )


def _learned(row: dict[str, Any]) -> int:
    if "labels" in row:
        return sum(label != IGNORED_LABEL for label in row["labels"])
    return sum(row["assistant_masks"])


if __name__ == "__main__":
    main()
