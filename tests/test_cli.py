"""The commands as a user types them: a process, its output, its exit code."""

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from tiny_model import make_tiny_base

ROOT = Path(__file__).resolve().parents[1]


def tuneline(*arguments: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tuneline.cli", *arguments]
    environment = {**os.environ, "TUNELINE_HOME": str(cwd / "home"), "PYTHONPATH": str(ROOT), **environment}
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=120, env=environment, check=False)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_base(tmp_path_factory.mktemp("base"))


@pytest.fixture
def project(tmp_path: Path, base: Path) -> Path:
    rows = "".join(f'{{"prompt": "red {n}", "completion": "green"}}\n' for n in range(40))
    (tmp_path / "rows.jsonl").write_text(rows)
    (tmp_path / "run.yaml").write_text(f"name: demo\nmodel: {{base: {base}}}\ndata: {{train: rows.jsonl}}\n")
    return tmp_path


def test_help_lists_the_commands_and_the_exit_codes(tmp_path: Path) -> None:
    shown = tuneline("--help", cwd=tmp_path)
    assert shown.returncode == 0
    for word in ("run", "validate", "schema", "plan", "show", "rollback", "image", "serve", "doctor", "init",
                 "quickstart", "3 the gate says REJECT"):  # fmt: skip
        assert word in shown.stdout


def test_a_written_starter_config_is_valid_and_never_overwritten(tmp_path: Path) -> None:
    assert tuneline("init", "new.yaml", cwd=tmp_path).returncode == 0
    valid = tuneline("validate", "new.yaml", "--set", "training.epochs=3", cwd=tmp_path)
    assert valid.returncode == 0
    assert "training.epochs = 3" in valid.stdout
    assert "adapter.alpha = 32.0  (default)" in valid.stdout
    again = tuneline("init", "new.yaml", cwd=tmp_path)
    assert (again.returncode, "the file exists" in again.stderr) == (2, True)


def test_the_schema_is_what_an_editor_completes_from(tmp_path: Path) -> None:
    schema = json.loads(tuneline("schema", cwd=tmp_path).stdout)
    assert schema["$defs"]["TrainingSpec"]["properties"]["learning_rate"]["description"].startswith(
        "Peak learning rate;"
    )


def test_validate_prints_every_mistake_without_a_traceback(tmp_path: Path) -> None:
    (tmp_path / "bad.yaml").write_text("name: demo\nmodel: {base: b}\ndata: {train: t, trian: u}\nadapter: {rank: 0}\n")
    shown = tuneline("validate", "bad.yaml", cwd=tmp_path)
    assert shown.returncode == 2
    assert "bad.yaml:3: unknown key `data.trian`" in shown.stderr
    assert "bad.yaml:4: `adapter.rank` is 0" in shown.stderr
    assert "Traceback" not in shown.stderr


Change = Callable[[Path], dict[str, str]]


def no_file(project: Path) -> dict[str, str]:
    (project / "rows.jsonl").unlink()
    return {}


def empty_file(project: Path) -> dict[str, str]:
    (project / "rows.jsonl").write_text("")
    return {}


def no_base(project: Path) -> dict[str, str]:
    (project / "run.yaml").write_text("name: demo\nmodel: {base: ./absent}\ndata: {train: rows.jsonl}\n")
    return {}


def no_weights(project: Path) -> dict[str, str]:
    (project / "hollow").mkdir()
    (project / "hollow" / "config.json").write_text("{}")
    (project / "run.yaml").write_text("name: demo\nmodel: {base: hollow}\ndata: {train: rows.jsonl}\n")
    return {}


def changed_base(project: Path, **change: object) -> dict[str, str]:
    folder = make_tiny_base(project / "changed")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | change))
    (project / "run.yaml").write_text("name: demo\nmodel: {base: changed}\ndata: {train: rows.jsonl}\n")
    return {}


def quantised_base(project: Path) -> dict[str, str]:
    return changed_base(project, quantization_config={"quant_method": "awq", "bits": 4})


def weights_of_another_model(project: Path) -> dict[str, str]:
    return changed_base(project, num_hidden_layers=3)


def no_prefect(_project: Path) -> dict[str, str]:
    return {"PREFECT_API_URL": f"http://127.0.0.1:{closed_port()}/api"}


def no_mlflow(_project: Path) -> dict[str, str]:
    return {"MLFLOW_TRACKING_URI": f"http://127.0.0.1:{closed_port()}"}


def no_such_target(project: Path) -> dict[str, str]:
    config = project / "run.yaml"
    config.write_text(config.read_text() + "adapter: {target_modules: [q_prj, lm_head]}\n")
    return {}


def closed_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.mark.parametrize(
    ("change", "messages"),
    [
        (no_file, ["data.train rows.jsonl: no such file"]),
        (empty_file, ["data.train rows.jsonl: the file is empty"]),
        (no_base, ["model.base ./absent: no such folder"]),
        (no_weights, ["no *.safetensors weights", "the folder has no tokenizer"]),
        (quantised_base, ["the weights are quantised already (awq)", "adapter.method qlora quantises it to NF4"]),
        (weights_of_another_model, ["model.layers.2.self_attn.q_proj.weight is missing", "of the same model together"]),
        (no_such_target, ["`q_prj` matches no linear module", "`lm_head` cannot be adapted"]),
        (no_prefect, ["Prefect at http://127.0.0.1:", "it does not answer"]),
        (no_mlflow, ["MLflow at http://127.0.0.1:", "it does not answer"]),
    ],
)
def test_bad_input_to_run_is_one_clear_message_and_nothing_is_made(
    project: Path, change: Change, messages: list[str]
) -> None:
    environment = change(project)
    shown = tuneline("run", "run.yaml", cwd=project, **environment)
    assert shown.returncode == 2, shown.stderr
    assert all(message in shown.stderr for message in messages), shown.stderr
    assert "Traceback" not in shown.stderr
    assert not (project / "home" / "store").exists()


@pytest.mark.parametrize("command", ["validate", "plan"])
def test_targets_that_match_nothing_are_refused_at_the_door(project: Path, command: str) -> None:
    no_such_target(project)
    shown = tuneline(command, "run.yaml", cwd=project)
    assert shown.returncode == 2, shown.stderr
    assert "`q_prj` matches no linear module\n    did you mean `q_proj`?" in shown.stderr
    assert "`lm_head` cannot be adapted" in shown.stderr
    assert "Traceback" not in shown.stderr


def test_an_adapter_that_vllm_refuses_is_said_to_be_served_merged(project: Path) -> None:
    shown = tuneline("validate", "run.yaml", "--set", "adapter.dora=true", cwd=project)
    assert (shown.returncode, "the adapter is served merged only: vLLM refuses DoRA" in shown.stdout) == (0, True)
    planned = tuneline("plan", "run.yaml", "--set", "adapter.initialisation=pissa", cwd=project)
    assert "served = merged only" in planned.stdout, planned.stderr


def test_a_run_that_was_never_made_cannot_be_shown(tmp_path: Path) -> None:
    shown = tuneline("show", "nothing", cwd=tmp_path)
    assert (shown.returncode, "no such run" in shown.stderr) == (2, True)


def test_docker_that_does_not_answer_is_said_before_anything_starts(tmp_path: Path) -> None:
    shown = tuneline("image", "verify", "demo", cwd=tmp_path, DOCKER_HOST="unix:///nonexistent/docker.sock")
    assert shown.returncode == 2
    assert "Docker" in shown.stderr
    assert "Traceback" not in shown.stderr
