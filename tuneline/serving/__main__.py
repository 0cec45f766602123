"""The package stage as a child process: `python -m tuneline.serving JOB_DIR`.

Input of the job: `merged`. Options, all of them optional: `run_name`, `verdict`, `revision` (the config's commit),
`fingerprints` (JSON, by stage), `adapter_sha256`, `source_date_epoch` (seconds), `base_images` (folder that keeps the
facts of base images; below the settings' home when absent).
"""

import json
import sys
from pathlib import Path

from tuneline.contracts.artifacts import MergedModel, ServingImage
from tuneline.contracts.jobs import Job, ProgressEvent, Reporter, run_job
from tuneline.contracts.settings import Settings
from tuneline.contracts.store import RECORD, StoredRecord, read_record
from tuneline.serving.base_image import read_base_image
from tuneline.serving.deploy import write_deployment_files
from tuneline.serving.deployment import Deployment
from tuneline.serving.engine import require_engine
from tuneline.serving.image import Provenance, package_model

MIB = 1 << 20
BASE_IMAGES = "base-images"


def package(job: Job, report: Reporter) -> ServingImage:
    """Write the serving image of a merged model and its deployment files.

    Raises:
        UserError: Docker is not reachable, the base image is missing or no server, or a weight file is damaged.
    """
    require_engine()

    def progress(done: int, total: int, what: str) -> None:
        report(ProgressEvent(done=done // MIB, planned=total // MIB, unit="MiB", note=what))

    merged_dir, spec, epoch = job.inputs["merged"], job.spec.serving, job.options.get("source_date_epoch")
    cache_dir = Path(job.options.get("base_images") or Settings.from_environment().home / BASE_IMAGES)
    merged = read_record(merged_dir, MergedModel)
    image = package_model(
        merged=merged,
        model_dir=merged_dir / MergedModel.MODEL,
        base_name=spec.base_image,
        base=read_base_image(spec.base_image, cache_dir, progress),
        spec=spec,
        provenance=provenance_of(job),
        out_dir=job.out_dir,
        created_epoch_seconds=None if epoch is None else int(epoch),
        progress=progress,
    )
    gpus = 0 if job.spec.budget.gpu == "none" else 1  # without tensor parallelism a replica takes one
    deployment = Deployment(
        job.spec.model_name, image.reference, image.manifest_digest, spec.base_image, spec=spec, gpus=gpus
    )
    weights_sha256 = merged.certificate.weights_sha256
    write_deployment_files(job.out_dir / ServingImage.DEPLOY, deployment, weights_sha256)
    return image


def provenance_of(job: Job) -> Provenance:
    """Gather what the image says about its making from the job and the record of its input."""
    stored = StoredRecord.model_validate_json((job.inputs["merged"] / RECORD).read_text(encoding="utf-8"))
    prefix = f"{MergedModel.MODEL}/"
    return Provenance(
        run_name=job.options.get("run_name", job.spec.name),
        model_name=job.spec.model_name,
        verdict=job.options.get("verdict", "NONE"),
        adapter_sha256=job.options.get("adapter_sha256"),
        revision=job.options.get("revision"),
        fingerprints=json.loads(job.options.get("fingerprints", "{}")),
        file_sha256={
            entry.path.removeprefix(prefix): entry.sha256 for entry in stored.files if entry.path.startswith(prefix)
        },
    )


if __name__ == "__main__":
    sys.exit(run_job(sys.argv[1:], package))
