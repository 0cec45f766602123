"""The package stage as the flow starts it: a child process with a job folder."""

import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml
from serving_images import docker_output, engine_answers, merged_model, tiny_base, write_model

from tuneline.contracts.artifacts import MergedModel, ServingImage
from tuneline.contracts.fingerprint import sha256_file
from tuneline.contracts.jobs import JOB, PROGRESS, RESULT, Job, JobResult, JobStatus, ProgressEvent
from tuneline.contracts.spec import RunSpec
from tuneline.contracts.store import ArtifactStore
from tuneline.serving.load import load_image

pytestmark = pytest.mark.skipif(not engine_answers(), reason="no Docker engine answers")
BASE = "tuneline-test/package-base:1"


@dataclass(frozen=True)
class Packaging:
    """A job folder and the merged model's artifact that the job reads."""

    job_dir: Path
    merged_dir: Path
    out_dir: Path

    def run(self) -> JobResult:
        command = [sys.executable, "-m", "tuneline.serving", str(self.job_dir)]
        subprocess.run(command, check=False, timeout=120)
        return JobResult.model_validate_json((self.job_dir / RESULT).read_text(encoding="utf-8"))


@pytest.fixture
def packaging(tmp_path: Path) -> Iterator[Packaging]:
    store, job_dir, out_dir = ArtifactStore(tmp_path / "store"), tmp_path / "job", tmp_path / "out"
    with store.work("merge", "f00d") as work:
        write_model(work / MergedModel.MODEL)
        merged = store.commit("merge", "f00d", work, merged_model(), 1.0)
    context = tmp_path / "context"
    for folder in (context, job_dir, out_dir):
        folder.mkdir()
    spec = RunSpec.model_validate(
        {"name": "nightly", "model": {"base": "b"}, "data": {"train": "t"}, "serving": {"base_image": BASE}}
    )
    options = {"verdict": "PROMOTE", "fingerprints": '{"merge": "f00d"}', "base_images": str(tmp_path / "cache")}
    job = Job(stage="package", spec=spec, inputs={"merged": merged.path}, out_dir=out_dir, options=options)
    (job_dir / JOB).write_text(job.model_dump_json(), encoding="utf-8")
    with tiny_base(BASE, context):
        yield Packaging(job_dir, merged.path, out_dir)


def test_the_child_writes_an_image_that_loads_deployment_files_and_progress(packaging: Packaging) -> None:
    result = packaging.run()
    assert result.status is JobStatus.COMPLETED, result.detail
    image = ServingImage.model_validate(result.artifact)
    load_image(image, packaging.out_dir / ServingImage.LAYOUT)
    try:
        labels = docker_output("image", "inspect", "--format", "{{json .Config.Labels}}", image.reference)
    finally:
        docker_output("rmi", image.reference)
    assert yaml.safe_load(labels)["io.tuneline.verdict"] == "PROMOTE"
    compose = yaml.safe_load((packaging.out_dir / ServingImage.DEPLOY / "compose.yaml").read_text(encoding="utf-8"))
    assert compose["services"]["nightly"]["image"] == image.reference
    events = (packaging.job_dir / PROGRESS).read_text(encoding="utf-8").splitlines()
    assert "writing layers" in {ProgressEvent.model_validate_json(event).note for event in events}


def test_a_shard_that_rotted_in_the_store_fails_the_job_and_is_named(packaging: Packaging) -> None:
    shard = packaging.merged_dir / MergedModel.MODEL / "model-00001-of-00002.safetensors"
    recorded = sha256_file(shard)
    shard.write_bytes(b"\x01" * 1000 + b"\x07")
    result = packaging.run()
    assert result.status is JobStatus.WRONG_INPUT
    assert [problem.where for problem in result.problems] == [str(shard)]
    assert recorded in result.problems[0].what
