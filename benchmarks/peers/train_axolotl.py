"""Axolotl's trainer with LoRA, driven as its command line drives it: as it comes, and as best set up on a CPU."""

import json
import os
from typing import Any

from benchmarks.peers.training_protocol import ALPHA, RANK, TrainingDriver, learned_tokens, losses, trainer_callback

PROJECTIONS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
VARIANTS: dict[str, dict[str, Any]] = {
    "defaults": {},
    # The LoRA kernels of 0.19.0, on by themselves, make buffers on a CUDA device; nothing sets `use_cpu`, without which
    # transformers refuses bf16 here.
    "tuned": {
        "bf16": False,
        "group_by_length": True,
        "lora_mlp_kernel": False,
        "lora_qkv_kernel": False,
        "lora_o_kernel": False,
    },
}


def main() -> None:
    driver = TrainingDriver()
    task = driver.task
    os.environ["AXOLOTL_DO_NOT_TRACK"] = "1"
    from axolotl.cli.args import TrainerCliArgs
    from axolotl.cli.config import load_cfg
    from axolotl.common.datasets import load_datasets
    from axolotl.train import setup_model_and_trainer

    config = task.work_dir / "config.yaml"
    settings = {
        "base_model": task.model,
        "datasets": [
            {
                "path": task.train,
                "ds_type": "json",
                "type": "chat_template",
                "field_messages": "messages",
                "roles_to_train": ["assistant"],
                "train_on_eos": "turn",
            }
        ],
        "chat_template": "tokenizer_default",
        "dataset_prepared_path": str(task.work_dir / "prepared"),
        "dataset_num_proc": 1,
        "sequence_len": task.max_length_tokens,
        "output_dir": str(task.work_dir / "out"),
        "adapter": "lora",
        "lora_r": RANK,
        "lora_alpha": ALPHA,
        "lora_target_modules": PROJECTIONS,
        "micro_batch_size": task.batch_rows,
        "gradient_accumulation_steps": 1,
        "num_epochs": 1,
        "learning_rate": task.learning_rate,
        "optimizer": "adamw_torch",
        "save_strategy": "no",
        "logging_steps": 1,
        **VARIANTS[task.variant],
    }
    config.write_text(json.dumps(settings), encoding="utf-8")  # JSON is YAML
    cfg = load_cfg(str(config))
    prepared = load_datasets(cfg=cfg, cli_args=TrainerCliArgs())
    trainer = setup_model_and_trainer(cfg, prepared)[0]
    clock = trainer_callback(driver)
    trainer.add_callback(clock)
    trainer.train()
    driver.done(
        seconds=clock.seconds,
        cpu_seconds=clock.cpu_seconds,
        steps=trainer.state.global_step,
        learned_tokens=learned_tokens(trainer.train_dataset),
        **losses(trainer.state.log_history),
    )


if __name__ == "__main__":
    main()
