"""Whatever ends a run half-way, the store is whole, nothing survives, and the same command goes on."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from tiny_model import make_tiny_base

from tuneline.contracts.artifacts import Adapter
from tuneline.contracts.jobs import PROGRESS, ProgressEvent
from tuneline.contracts.run_record import RunRecord
from tuneline.contracts.store import read_record

ROOT = Path(__file__).resolve().parents[1]
STEPS = 400
DEADLINE_SECONDS = 240.0
CONFIG = """
name: demo
model: {{base: {base}, dtype: float32}}
data: {{train: rows.jsonl, held_out: rows.jsonl}}
training: {{max_optimizer_steps: {steps}, effective_batch_rows: 4, epochs: 1000, checkpoint_every_optimizer_steps: 10}}
evaluation: {{generate: false}}
gate: {{metric: held_out_loss}}
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    base = make_tiny_base(tmp_path / "base")
    rows = [{"prompt": f"red kitchen {n}", "completion": f"green {n % 5}"} for n in range(40)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "run.yaml").write_text(CONFIG.format(base=base, steps=STEPS))
    return tmp_path


def start(project: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "tuneline.cli", "run", "run.yaml", "--json"],
        cwd=project,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "TUNELINE_HOME": str(project / "home"), "DOCKER_HOST": "unix:///nonexistent.sock"},
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's background job ignores it
    )


def wait_for_step(project: Path, step: int, process: subprocess.Popen[str]) -> None:
    """Wait until the training has passed a step."""
    deadline = time.monotonic() + DEADLINE_SECONDS
    while time.monotonic() < deadline:
        for path in (project / "home" / "store" / "jobs").glob(f"train-*/{PROGRESS}"):
            lines = path.read_text().splitlines()
            if lines and ProgressEvent.model_validate_json(lines[-1]).done >= step:
                return
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    raise AssertionError("the training did not come that far")


def descendants(process: subprocess.Popen[str]) -> list[psutil.Process]:
    return psutil.Process(process.pid).children(recursive=True)


@pytest.mark.parametrize(
    ("number", "exit_code"), [(signal.SIGINT, 5), (signal.SIGTERM, 5), (signal.SIGKILL, -signal.SIGKILL)]
)
def test_a_run_that_is_stopped_in_training_goes_on_from_its_checkpoint(
    project: Path, number: signal.Signals, exit_code: int
) -> None:
    first = start(project)
    wait_for_step(project, 30, first)
    children = descendants(first)
    first.send_signal(number)
    _, errors = first.communicate(timeout=DEADLINE_SECONDS)
    assert first.returncode == exit_code, errors
    assert "Traceback" not in errors
    _, alive = psutil.wait_procs(children, timeout=60)
    assert alive == []
    assert sorted(path.name for path in (project / "home" / "store" / "artifacts").iterdir()) == ["plan", "prepare"]

    second = start(project)
    output, errors = second.communicate(timeout=DEADLINE_SECONDS)
    record = RunRecord.model_validate_json(output)
    line = record.line("train")
    assert line is not None, errors
    assert line.path is not None
    adapter = read_record(line.path, Adapter)
    assert adapter.optimizer_steps == STEPS
    assert 10 <= adapter.resumed_from_step < STEPS
