"""LLaMA-Factory's own preprocessing: `get_dataset`, as each of its training runs calls it.

No `tokenized_path`: it would write the rows a second time, and the memory-mapped cache is as ready for the trainer.
"""

import json

from benchmarks.peers.protocol import Driver


def main() -> None:
    driver = Driver()
    task = driver.task
    from llamafactory.data import get_dataset, get_template_and_fix_tokenizer
    from llamafactory.hparams import get_train_args
    from llamafactory.model import load_tokenizer

    columns = {
        "file_name": task.train,
        "formatting": "sharegpt",
        "columns": {"messages": "messages"},
        "tags": {"role_tag": "role", "content_tag": "content", "user_tag": "user", "assistant_tag": "assistant"},
    }
    (task.work_dir / "dataset_info.json").write_text(json.dumps({"rows": columns}), encoding="utf-8")
    model_args, data_args, training_args, _, _ = get_train_args(
        {
            "stage": "sft",
            "do_train": True,
            "finetuning_type": "lora",
            "model_name_or_path": task.model,
            "dataset": "rows",
            "dataset_dir": str(task.work_dir),
            "template": "qwen",
            "cutoff_len": task.max_length_tokens,
            "preprocessing_num_workers": task.workers,
            "output_dir": str(task.work_dir / "out"),
            "report_to": "none",
            "use_cpu": True,
        }
    )
    tokenizer_module = load_tokenizer(model_args)
    template = get_template_and_fix_tokenizer(tokenizer_module["tokenizer"], data_args)
    driver.ready()
    module = get_dataset(template, model_args, data_args, training_args, stage="sft", **tokenizer_module)
    driver.done()
    driver.facts(module["train_dataset"])


if __name__ == "__main__":
    main()
