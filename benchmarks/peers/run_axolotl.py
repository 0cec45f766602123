"""Axolotl's own preprocessing: what `axolotl preprocess CONFIG` does once its config is read."""

import json
import os

from benchmarks.peers.protocol import Driver


def main() -> None:
    driver = Driver()
    task = driver.task
    os.environ["AXOLOTL_IS_PREPROCESS"] = "1"  # as its command line sets it
    from axolotl.cli.args import PreprocessCliArgs
    from axolotl.cli.config import load_cfg
    from axolotl.common.datasets import load_datasets
    from axolotl.utils.trainer import disable_datasets_caching

    config = task.work_dir / "config.yaml"
    settings = {
        "base_model": task.model,
        "datasets": [
            {
                "path": task.train,
                "ds_type": "json",
                "type": "chat_template",
                "field_messages": "messages",
                # Its documented alternative, both of these empty, learns the last turn only and is no faster
                # (1,320 against 1,390 rows/s): each row is tokenised twice.
                "roles_to_train": ["assistant"],
                "train_on_eos": "turn",
            }
        ],
        "chat_template": "tokenizer_default",
        "dataset_prepared_path": str(task.work_dir / "prepared"),
        "dataset_num_proc": task.workers,
        "sequence_len": task.max_length_tokens,
        "output_dir": str(task.work_dir / "out"),
        "micro_batch_size": 1,
        "gradient_accumulation_steps": 1,
        "num_epochs": 1,
        "learning_rate": 1e-4,
        "optimizer": "adamw_torch",
    }
    config.write_text(json.dumps(settings), encoding="utf-8")  # JSON is YAML
    cfg = load_cfg(str(config), is_preprocess=True)
    cfg.is_preprocess = True
    driver.ready()
    with disable_datasets_caching():  # as its command line does
        prepared = load_datasets(cfg=cfg, cli_args=PreprocessCliArgs())
    driver.done()
    driver.facts(prepared.train_dataset)


if __name__ == "__main__":
    main()
