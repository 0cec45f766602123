"""A version is made once, carries its lineage, and gives back the files that were put in."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from registry_requests import registration

from tuneline.contracts.artifacts import Rung, SmokeReport
from tuneline.contracts.errors import UserError
from tuneline.registry.connection import Registry
from tuneline.registry.tracking import start_run
from tuneline.registry.versions import record_image, record_report, record_smoke, register, version_info, versions

pytest_plugins = ["registry_fixtures"]


@pytest.fixture
def run_id(registry: Registry) -> str:
    return start_run(registry, "versions", "demo", "9999", {}).run_id


def test_registering_twice_makes_one_version(registry: Registry, run_id: str, tmp_path: Path) -> None:
    request = registration(tmp_path, "once", run_id)
    first, second = register(registry, request), register(registry, request)
    assert first == second
    assert (first.version, first.run_id, first.alias) == ("1", run_id, None)
    assert len(versions(registry, "once")) == 1

    other = register(registry, registration(tmp_path, "once", run_id, fingerprint="f2"))
    assert other.version == "2"
    assert [info.version for info in versions(registry, "once")] == ["2", "1"]


def test_a_version_carries_its_lineage(registry: Registry, run_id: str, tmp_path: Path) -> None:
    made = register(registry, registration(tmp_path, "lineage", run_id, champion="4"))
    tags = registry.mlflow.get_model_version("lineage", made.version).tags
    assert json.loads(tags.pop("tuneline.certificate")) == {
        "base": "original",
        "mean_kl": 1e-6,
        "p99_kl": 2e-5,
        "samples": 8,
        "tokens": 512,
        "top1_agreement": 0.999,
    }
    assert tags == {
        "tuneline.fingerprint": "f1",
        "tuneline.model_id": made.model_id,
        "tuneline.run": "demo-1",
        "tuneline.config_sha256": "c0" * 32,
        "tuneline.data_receipt_sha256": "da" * 32,
        "tuneline.base": "tiny",
        "tuneline.base_sha256": "ba" * 32,
        "tuneline.adapter_sha256": "ad" * 32,
        "tuneline.merged_sha256": "3e" * 32,
        "tuneline.merged_fingerprint": "0011223344556677",
        "tuneline.verdict": "PROMOTE",
        "tuneline.verdict_reasons": "better by 4 points",
        "tuneline.git_commit": "abc1234",
        "tuneline.compared_champion": "4",
    }


def test_the_registered_files_are_those_that_were_put_in(registry: Registry, run_id: str, tmp_path: Path) -> None:
    from mlflow.artifacts import download_artifacts

    request = registration(tmp_path, "files", run_id)
    made = register(registry, request)
    (tmp_path / "down").mkdir()
    folder = Path(
        download_artifacts(
            artifact_uri=f"models:/files/{made.version}",
            dst_path=str(tmp_path / "down"),
            tracking_uri=registry.mlflow.tracking_uri,
        )
    )
    content = {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    content.pop("registered_model_meta", None)  # MLflow's own note of where the download came from
    assert request.adapter is not None
    assert content == {
        "adapter/adapter_config.json": (request.adapter / "adapter_config.json").read_bytes(),
        "adapter/adapter_model.safetensors": (request.adapter / "adapter_model.safetensors").read_bytes(),
        "receipt.json": b'{"rows": 3}',
        "config.yaml": b"name: demo\n",
        "verdict.json": request.lineage.verdict.model_dump_json(indent=1).encode(),
        "certificate.json": request.lineage.certificate.model_dump_json(indent=1).encode(),
    }


def test_an_upload_that_was_killed_is_taken_up_by_the_next_attempt(
    local_registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = registration(tmp_path, "killed", start_run(local_registry, "versions", "demo", "8888", {}).run_id)

    def killed(*arguments: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(local_registry.mlflow, "log_model_artifacts", killed)
        register(local_registry, request)
    made = register(local_registry, request)
    experiment_id = local_registry.mlflow.get_experiment_by_name("versions").experiment_id
    (model,) = local_registry.mlflow.search_logged_models([experiment_id])
    assert (model.model_id, model.status) == (made.model_id, "READY")


def test_a_model_of_which_every_weight_was_trained_uploads_no_weights(local_registry: Registry, tmp_path: Path) -> None:
    run_id = start_run(local_registry, "versions", "demo", "7777", {}).run_id
    made = register(local_registry, replace(registration(tmp_path, "full", run_id), adapter=None))
    files = local_registry.mlflow.list_logged_model_artifacts(made.model_id)
    assert {file.path for file in files} == {"receipt.json", "config.yaml", "verdict.json", "certificate.json"}


def test_image_smoke_and_report_are_on_record(registry: Registry, run_id: str, tmp_path: Path) -> None:
    made = register(registry, registration(tmp_path, "image", run_id))
    assert version_info(registry, "image", made.version).image_digest is None
    rungs = (Rung(name="health", passed=True, figure="12 s"), Rung(name="drain", passed=False, figure="0 s"))
    smoke = SmokeReport(passed=False, rungs=rungs, start_seconds=51.26, total_seconds=80.0, image_id="sha256:11")
    record_image(registry, "image", made.version, "sha256:aa", "tuneline/demo:1")
    record_smoke(registry, "image", made.version, smoke)
    record_report(registry, "image", made.version, "reports/demo.html")
    info = version_info(registry, "image", made.version)
    assert (info.image_digest, info.image_reference) == ("sha256:aa", "tuneline/demo:1")
    assert json.loads(info.smoke or "") == {"passed": False, "failed": ["drain"], "start_seconds": 51.3}
    assert info.report == "reports/demo.html"
    assert info.merged_fingerprint == "0011223344556677"


def test_unknown_models_and_versions_are_named(registry: Registry, run_id: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no model `it's` is registered"):
        versions(registry, "it's")
    register(registry, registration(tmp_path, "known", run_id))
    with pytest.raises(UserError, match=r"has no version 7\n    its versions: 1"):
        version_info(registry, "known", "7")
