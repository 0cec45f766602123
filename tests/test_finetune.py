"""The whole pipeline as its users run it: from the command line, and as the deployment finetune/main.

The tests of this file share one home and go in order: the first run makes everything, the others find most of it.
"""

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from mlflow_server import mlflow_server
from prefect_stack import PrefectStack

from tuneline.contracts.artifacts import EvalReport, Outcome
from tuneline.contracts.run_record import STAGES, RunRecord
from tuneline.contracts.settings import Settings
from tuneline.contracts.store import read_record
from tuneline.registry.aliases import Alias
from tuneline.registry.connection import connect
from tuneline.registry.versions import versions

ROOT = Path(__file__).resolve().parents[1]
NO_ENGINE = "unix:///nonexistent/docker.sock"


@dataclass(frozen=True)
class Home:
    """A TUNELINE_HOME of the tests' own."""

    path: Path

    def tuneline(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        env = {**os.environ, "TUNELINE_HOME": str(self.path), "COLUMNS": "160", **environment}
        command = [sys.executable, "-m", "tuneline.cli", *arguments]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=1800, env=env, check=False)

    def run(self, config: str, **environment: str) -> RunRecord:
        ended = self.tuneline("run", f"configs/{config}.yaml", "--json", **environment)
        assert ended.stdout, ended.stderr
        record = RunRecord.model_validate_json(ended.stdout)
        assert record.exit_code == ended.returncode
        return record


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Home:
    return Home(tmp_path_factory.mktemp("home"))


@pytest.fixture(scope="module")
def first(home: Home) -> RunRecord:
    return home.run("quickstart")


def scores(record: RunRecord) -> dict[tuple[str, str], dict[str, float]]:
    line = record.line("evaluate")
    assert line is not None
    assert line.path is not None
    report = read_record(line.path, EvalReport)
    return {(score.suite, score.model): score.metrics for score in report.scores}


def test_the_quickstart_goes_from_a_yaml_to_a_released_image(first: RunRecord) -> None:
    assert first.exit_code == 0, first.error
    assert first.outcome == Outcome.PROMOTE
    assert [(line.stage, line.status) for line in first.stages] == [(stage, "made") for stage in STAGES]
    assert first.champion_version == first.model_version
    assert first.image_digest is not None
    assert re.fullmatch(r"sha256:[0-9a-f]{64}", first.image_digest)


def test_the_quickstart_learns_the_new_task_and_keeps_the_old_ones(first: RunRecord) -> None:
    figures = scores(first)
    assert figures["target", "base"]["exact_match"] < 0.10
    assert figures["target", "candidate"]["exact_match"] > 0.80
    assert figures["target", "candidate"]["json_validity"] > 0.99
    assert figures["retention", "candidate"]["exact_match"] > figures["retention", "base"]["exact_match"] - 0.05
    assert figures["target", "candidate"]["held_out_loss"] < figures["target", "base"]["held_out_loss"] / 2


def test_the_report_is_one_page_that_loads_nothing_from_elsewhere(first: RunRecord) -> None:
    assert first.report is not None
    page = first.report.read_text(encoding="utf-8")
    assert first.run_id in page
    assert first.image_digest is not None
    assert first.image_digest in page
    assert re.findall(r"(?:src|<link[^>]+href)=[\"']?https?:", page) == []


def test_the_same_run_again_finds_every_artifact(home: Home, first: RunRecord) -> None:
    again = home.run("quickstart")
    assert (again.exit_code, again.model_version) == (0, first.model_version)
    assert [(line.stage, line.status) for line in again.stages] == [(stage, "found") for stage in STAGES]
    assert [line.fingerprint for line in again.stages] == [line.fingerprint for line in first.stages]


def test_a_person_reads_the_stages_the_verdict_and_what_to_do_next(home: Home, first: RunRecord) -> None:
    shown = home.tuneline("show", first.run_id)
    assert shown.returncode == 0
    assert first.image_digest is not None
    verdict = ("PROMOTE", "95 % interval", f"quickstart version {first.model_version}", first.image_digest)
    further = ("mlflow server", "prefect server start", "tuneline serve", "curl -s http://127.0.0.1:8000/v1")
    assert [part for part in (*STAGES, *verdict, *further) if part not in shown.stdout] == []


def test_without_replay_the_gate_rejects_because_the_old_tasks_are_forgotten(home: Home, first: RunRecord) -> None:
    forgets = home.run("quickstart-forgets")
    assert (forgets.exit_code, forgets.outcome) == (3, Outcome.REJECT)
    figures = scores(forgets)
    assert figures["target", "candidate"]["exact_match"] > 0.70
    assert figures["retention", "candidate"]["exact_match"] < figures["retention", "base"]["exact_match"] - 0.15
    assert any("etention" in reason and "allowed" in reason for reason in forgets.reasons), forgets.reasons
    statuses = {line.stage: line.status for line in forgets.stages}
    assert [statuses[stage] for stage in ("register", "package", "verify", "release")] == ["made", *["skipped"] * 3]
    assert forgets.champion_version is None


def test_without_an_engine_the_version_waits_as_challenger_until_it_is_verified(
    home: Home, first: RunRecord, tmp_path: Path
) -> None:
    tracking = {"MLFLOW_TRACKING_URI": f"sqlite:///{tmp_path}/mlflow.db"}
    waits = home.run("quickstart", DOCKER_HOST=NO_ENGINE, **tracking)
    assert (waits.exit_code, waits.champion_version) == (0, None)
    package = waits.line("package")
    assert package is not None
    assert (package.status, "no container engine" in package.made) == ("skipped", True)
    settings = Settings.from_environment({"TUNELINE_HOME": str(home.path), **tracking})
    assert [info.aliases for info in versions(connect(settings), "quickstart")] == [(Alias.CHALLENGER,)]
    verified = home.tuneline("image", "verify", waits.run_id, **tracking)
    assert verified.returncode == 0, verified.stderr
    assert [info.aliases for info in versions(connect(settings), "quickstart")] == [(Alias.CHAMPION,)]


@pytest.fixture(scope="module")
def stack(home: Home, first: RunRecord, tmp_path_factory: pytest.TempPathFactory) -> Iterator[PrefectStack]:
    with mlflow_server(tmp_path_factory.mktemp("mlflow")) as mlflow:
        environment = {"TUNELINE_HOME": str(home.path), "MLFLOW_TRACKING_URI": mlflow.uri}
        with PrefectStack(tmp_path_factory.mktemp("prefect"), environment) as stack:
            stack.command("work-pool", "create", "default", "--type", "process")
            stack.command("--no-prompt", "deploy", "--all", cwd=ROOT)
            stack.start_worker("default")
            yield stack


def test_ci_triggers_the_deployment_and_reads_its_exit_code(stack: PrefectStack, first: RunRecord) -> None:
    watched = stack.command("deployment", "run", "finetune/main", "--watch", check=False)
    assert watched.returncode == 0, watched.stdout + stack.logs()
    run = stack.newest_run("finetune")
    assert run["state_name"] == "Completed"
    assert run["name"] == "quickstart"
    names = {task["name"].rsplit("-", 1)[0]: task["state_name"] for task in stack.tasks_of(run["id"])}
    assert names == {stage: "Completed" if stage in ("register", "release") else "Cached" for stage in STAGES}


def test_a_rejected_run_is_a_completed_one_with_the_name_rejected(stack: PrefectStack, first: RunRecord) -> None:
    parameters = ["-p", "config=configs/quickstart-forgets.yaml", "-p", 'overrides=["serving.probes=4"]']
    watched = stack.command("deployment", "run", "finetune/main", "--watch", *parameters, check=False)
    assert watched.returncode == 0, watched.stdout + stack.logs()
    run = stack.newest_run("finetune")
    assert (run["state_type"], run["state_name"]) == ("COMPLETED", "Rejected")
    assert run["name"] == "quickstart-forgets serving.probes=4"


def test_a_wrong_override_fails_the_run_with_its_reason(stack: PrefectStack) -> None:
    watched = stack.command(
        "deployment", "run", "finetune/main", "--watch", "-p", 'overrides=["training.epoch=2"]', check=False
    )
    assert watched.returncode == 1
    run = stack.newest_run("finetune")
    assert run["state_type"] == "FAILED"
    assert "did you mean `training.epochs`?" in run["state"]["message"]


def test_the_run_form_describes_its_two_parameters(stack: PrefectStack) -> None:
    schema = stack.deployment("finetune/main")["parameter_openapi_schema"]
    described = {name: field["description"] for name, field in schema["properties"].items()}
    assert described.keys() == {"config", "overrides"}
    assert all(described.values())
    assert "oneOf" not in json.dumps(schema)
