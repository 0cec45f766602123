"""One MLflow run per tuneline run, whatever happens to the training process or to the server."""

import logging
import time
from pathlib import Path

import pytest
from mlflow_server import MlflowServer

from tuneline.contracts.errors import ServiceUnavailable, UserError
from tuneline.contracts.spec import RunSpec
from tuneline.registry import metrics as metrics_module
from tuneline.registry.connection import Registry
from tuneline.registry.metrics import MetricWriter
from tuneline.registry.tracking import RunStatus, flat_parameters, start_run

pytest_plugins = ["registry_fixtures"]
SPEC = RunSpec.model_validate({"name": "demo", "model": {"base": "b"}, "data": {"train": "rows.jsonl"}})


def steps_of(registry: Registry, run_id: str, metric: str) -> list[int]:
    return sorted(point.step for point in registry.mlflow.get_metric_history(run_id, metric))


def test_every_key_of_the_config_becomes_a_parameter_with_its_section() -> None:
    parameters = flat_parameters(SPEC)
    assert parameters["name"] == "demo"
    assert parameters["adapter.rank"] == "16"
    assert parameters["training.max_optimizer_steps"] == "None"
    assert parameters["evaluation.metrics"] == "['exact_match']"


def test_an_interrupted_run_goes_on_in_the_same_mlflow_run_without_doubling_metrics(registry: Registry) -> None:
    parameters = flat_parameters(SPEC) | {"long": "x" * 7000}
    first = start_run(registry, "resume", "demo", "f00d", parameters)
    for step in (10, 20, 30):
        first.log_batch(step, {"loss": 1.0 / step, "grad_norm": 0.5})
    first.finish(RunStatus.KILLED)

    second = start_run(registry, "resume", "demo", "f00d", parameters)
    assert (second.run_id, second.resumed, first.resumed) == (first.run_id, True, False)
    assert registry.mlflow.get_run(second.run_id).info.status == "RUNNING"
    for step in (20, 30, 40):  # training went on from the checkpoint of step 10
        second.log_batch(step, {"loss": 2.0 / step})
    second.finish(RunStatus.FINISHED)

    run = registry.mlflow.get_run(second.run_id)
    assert steps_of(registry, second.run_id, "loss") == [10, 20, 30, 40]
    assert run.info.status == "FINISHED"
    assert run.data.params["training.learning_rate"] == "0.0002"
    assert run.data.params["long"].endswith("x [...]")


def test_samples_of_the_machine_follow_each_other_through_every_attempt(local_registry: Registry) -> None:
    first = start_run(local_registry, "samples", "demo", "f00d", {})
    for busy in (10.0, 20.0):
        first.log_sample({"system/cpu_utilization_percentage": busy})
    first.finish(RunStatus.KILLED)
    second = start_run(local_registry, "samples", "demo", "f00d", {})
    second.log_sample({"system/cpu_utilization_percentage": 30.0})
    second.finish(RunStatus.FINISHED)
    history = local_registry.mlflow.get_metric_history(second.run_id, "system/cpu_utilization_percentage")
    assert [(point.step, point.value) for point in history] == [(0, 10.0), (1, 20.0), (2, 30.0)]


def test_another_fingerprint_is_another_run(local_registry: Registry) -> None:
    one = start_run(local_registry, "e", "demo", "aaaa", {})
    other = start_run(local_registry, "e", "demo", "bbbb", {})
    assert one.run_id != other.run_id
    for run in (one, other):
        run.finish(RunStatus.FINISHED)


def test_artifacts_data_sets_and_tags_are_on_the_run(registry: Registry, tmp_path: Path) -> None:
    (tmp_path / "report").mkdir()
    (tmp_path / "report" / "index.html").write_text("<p>fine</p>")
    (tmp_path / "receipt.json").write_text("{}")
    run = start_run(registry, "artifacts", "demo", "cafe", {})
    run.log_artifact_file(tmp_path / "receipt.json")
    run.log_artifacts(tmp_path / "report", "report")
    for _ in range(2):  # a second attempt names the same data set again
        run.log_dataset("support", "0123456789abcdef" * 4, "rows.jsonl", "training")
    run.set_tags({"tuneline.plan": "1 h"})
    run.finish(RunStatus.FINISHED)

    logged = registry.mlflow.get_run(run.run_id)
    assert {file.path for file in registry.mlflow.list_artifacts(run.run_id)} == {"receipt.json", "report"}
    assert [file.path for file in registry.mlflow.list_artifacts(run.run_id, "report")] == ["report/index.html"]
    assert [entry.dataset.digest for entry in logged.inputs.dataset_inputs] == ["0123456789abcdef" * 2]
    assert logged.data.tags["tuneline.data_sha256.training"] == "0123456789abcdef" * 4
    assert logged.data.tags["tuneline.plan"] == "1 h"


def test_a_deleted_experiment_is_refused_with_the_way_to_restore_it(local_registry: Registry) -> None:
    experiment_id = local_registry.mlflow.create_experiment("gone")
    local_registry.mlflow.delete_experiment(experiment_id)
    with pytest.raises(UserError, match=f"mlflow experiments restore -x {experiment_id}"):
        start_run(local_registry, "gone", "demo", "dddd", {})


def test_metrics_logged_while_the_server_was_away_arrive_when_it_is_back(
    server: MlflowServer, server_registry: Registry, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    run = start_run(server_registry, "outage", "demo", "beef", {})
    run.log_batch(1, {"loss": 1.0})
    server.kill()
    with caplog.at_level(logging.WARNING, logger="tuneline.registry.metrics"):
        run.log_batch(2, {"loss": 0.5})
        await_record(caplog, "metrics are kept until MLflow answers again")
        run.log_batch(3, {"loss": 0.25})
        server.start()
        run.finish(RunStatus.FINISHED)
    assert steps_of(server_registry, run.run_id, "loss") == [1, 2, 3]
    assert [record.levelname for record in caplog.records if "are kept until" in record.message] == ["WARNING"]
    assert "did not reach MLflow" not in caplog.text


def await_record(caplog: pytest.LogCaptureFixture, text: str) -> None:
    deadline = time.monotonic() + 30
    while text not in caplog.text:
        assert time.monotonic() < deadline, f"never logged: {text}"
        time.sleep(0.02)


def test_a_full_queue_loses_its_oldest_points_and_counts_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics_module, "KEPT_POINTS", 3)

    def away(points: object) -> None:
        raise ServiceUnavailable.of("away")

    writer = MetricWriter(away, flush_seconds=0.01)
    writer.add(["a", "b", "c", "d", "e"])  # type: ignore[list-item]  # the queue does not look into its points
    assert writer.close(patience_seconds=0.05) == 5


def test_a_batch_that_is_refused_does_not_block_the_next(caplog: pytest.LogCaptureFixture) -> None:
    arrived: list[str] = []

    def refuse_bad(points: list[str]) -> None:
        if "bad" in points:
            raise ValueError("no such metric")
        arrived.extend(points)

    writer = MetricWriter(refuse_bad, flush_seconds=1e6)  # type: ignore[arg-type]
    writer.add(["bad"] * metrics_module.BATCH_POINTS + ["good"])  # type: ignore[list-item]
    assert writer.close(patience_seconds=5) == metrics_module.BATCH_POINTS
    assert arrived == ["good"]
    assert "MLflow refused 1000 metric points" in caplog.text
