"""Our prepare, plan and train stages on the same rows, as their child processes run them."""

import time
from pathlib import Path

from benchmarks.peers.training_protocol import ALPHA, RANK, TrainingDriver


def main() -> None:
    driver = TrainingDriver()
    task = driver.task
    from training.train import train
    from tuneline.contracts.artifacts import Plan, PreparedData, Record
    from tuneline.contracts.jobs import Job, ProgressEvent
    from tuneline.contracts.spec import RunSpec
    from tuneline.contracts.store import RECORD, StoredRecord, write_whole
    from tuneline.data.prepare import prepare
    from tuneline.planning.hardware import this_machine
    from tuneline.planning.run import run as plan_training

    spec = RunSpec.model_validate(
        {
            "name": "benchmark",
            "model": {"base": task.model},
            "data": {
                "train": task.train,
                "held_out": task.held_out,
                "max_length_tokens": task.max_length_tokens,
                "leaks": "report",
            },
            "adapter": {"rank": RANK, "alpha": ALPHA},
            "training": {
                "effective_batch_rows": task.batch_rows,
                "learning_rate": task.learning_rate,
                "log_every_optimizer_steps": 1,
                "checkpoint_every_optimizer_steps": 100_000,
            },
        }
    )
    folders = {name: task.work_dir / name for name in ("prepared", "plan", "adapter")}

    def keep(stage: str, record: Record) -> None:
        artifact = record.model_dump(mode="json")
        stored = StoredRecord(stage=stage, fingerprint="0", made_at="", seconds=0.0, artifact=artifact, files=())
        write_whole(folders["prepared" if stage == "prepare" else stage] / RECORD, stored.model_dump_json())

    cpu_started = 0.0

    def listen(event: ProgressEvent) -> None:
        nonlocal cpu_started
        if "loss" in event.metrics:
            driver.first()
        else:  # the last of these comes right before the first step
            cpu_started = time.process_time()

    for folder in folders.values():
        folder.mkdir()
    base = Path(task.model)
    prepared: PreparedData = prepare(
        Job(stage="prepare", spec=spec, inputs={"base": base}, out_dir=folders["prepared"]), lambda _: None
    )
    keep("prepare", prepared)
    plan: Plan = plan_training(spec, base, prepared, this_machine())
    keep("plan", plan)
    inputs = {"base": base, "prepared": folders["prepared"], "plan": folders["plan"]}
    adapter = train(Job(stage="train", spec=spec, inputs=inputs, out_dir=folders["adapter"]), listen)
    driver.done(
        seconds=adapter.train_seconds,
        cpu_seconds=time.process_time() - cpu_started,
        steps=adapter.optimizer_steps,
        learned_tokens=prepared.learned_tokens,
        first_loss=adapter.first_loss,
        last_loss=adapter.last_loss,
    )


if __name__ == "__main__":
    main()
