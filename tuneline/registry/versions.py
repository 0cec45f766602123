"""Versions in the MLflow model registry: made once per fingerprint, tagged with their lineage.

A version holds the adapter, the receipt, the certificate, the verdict and the config. The merged weights stay in the
artifact store under their digest: they are many gigabytes and can be made again from the adapter.
"""

import json
import tempfile
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Final

from tuneline.contracts.artifacts import MergedModel, PreparedData, RegisteredModel, SmokeReport
from tuneline.contracts.errors import UserError
from tuneline.registry.connection import Registry
from tuneline.registry.lineage import Lineage, Tag

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion
    from mlflow.entities.model_registry import RegisteredModel as MlflowModel
    from mlflow.tracking import MlflowClient

ADAPTER_FOLDER: Final = "adapter"
CONFIG_FILE: Final = "config.yaml"
VERDICT_FILE: Final = "verdict.json"


@dataclass(frozen=True)
class RegistrationRequest:
    """A model to register."""

    name: str
    run_id: str
    lineage: Lineage
    adapter: Path | None
    """PEFT folder; None when every weight was trained, since then the merged weights are all there is."""
    receipt: Path
    config_yaml: str
    """The config with overrides applied."""


@dataclass(frozen=True)
class VersionInfo:
    """A version as the registry knows it; None is what was never recorded."""

    name: str
    version: str
    aliases: tuple[str, ...]
    created_at: str
    run_id: str
    run: str | None
    verdict: str | None
    compared_champion: str | None
    merged_sha256: str | None
    merged_fingerprint: str | None
    """Fingerprint of the merged model in the artifact store."""
    image_digest: str | None
    image_reference: str | None
    smoke: str | None
    report: str | None


def register(registry: Registry, request: RegistrationRequest) -> RegisteredModel:
    """Make a version, or return the one that has the same fingerprint.

    Killed at any point and called again, it goes on where it was: an upload without a version is taken up.

    Raises:
        ServiceUnavailable: when MLflow is away.
    """
    fingerprint = request.lineage.fingerprint
    with registry.lock(f"register-{request.name}"), registry.calls() as client:
        _ensure_model(client, request.name)
        wanted = f"name = '{request.name}' and tags.`{Tag.FINGERPRINT}` = '{fingerprint}'"
        found = client.search_model_versions(wanted, max_results=1)
        made = found[0] if found else _create_version(client, request)
        aliases = _aliases_of(client.get_registered_model(request.name), str(made.version))
    return RegisteredModel(
        name=request.name,
        version=str(made.version),
        run_id=made.run_id,
        model_id=made.tags[Tag.MODEL_ID],
        alias=aliases[0] if aliases else None,
    )


def versions(registry: Registry, name: str) -> tuple[VersionInfo, ...]:
    """List a model's versions, newest first; raises `UserError` when there is no such model."""
    with registry.calls() as client:
        model = find_model(client, name)
        if model is None:
            raise no_such_model(name, registry)
        found = client.search_model_versions(f"name = '{name}'", order_by=["version_number DESC"])
        return tuple(_info(version, _aliases_of(model, str(version.version))) for version in found)


def version_info(registry: Registry, name: str, version: str) -> VersionInfo:
    """Describe a version; raises `UserError` when it is not there."""
    known = versions(registry, name)
    for info in known:
        if info.version == version:
            return info
    listed = ", ".join(info.version for info in known) or "none"
    raise UserError.of(f"model `{name}` has no version {version}", registry.address, f"its versions: {listed}")


def record_image(registry: Registry, name: str, version: str, digest: str, reference: str) -> None:
    """Tag a version with the image that serves it."""
    _set_tags(registry, name, version, {Tag.IMAGE_DIGEST: digest, Tag.IMAGE_REFERENCE: reference})


def record_smoke(registry: Registry, name: str, version: str, report: SmokeReport) -> None:
    """Tag a version with what its started image answered."""
    failed = [rung.name for rung in report.rungs if not rung.passed]
    summary = {"passed": report.passed, "failed": failed, "start_seconds": round(report.start_seconds, 1)}
    _set_tags(registry, name, version, {Tag.SMOKE: json.dumps(summary)})


def record_report(registry: Registry, name: str, version: str, link: str) -> None:
    """Tag a version with where its report is."""
    _set_tags(registry, name, version, {Tag.REPORT: link})


def find_model(client: "MlflowClient", name: str) -> "MlflowModel | None":
    """Return a registered model with its aliases, or None."""
    from mlflow.exceptions import MlflowException

    try:
        return client.get_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        return None


def no_such_model(name: str, registry: Registry) -> UserError:
    """Build the error for a model that is not registered."""
    return UserError.of(f"no model `{name}` is registered", f"MLflow at {registry.address}", "`tuneline run` makes one")


def _ensure_model(client: "MlflowClient", name: str) -> None:
    from mlflow.exceptions import MlflowException

    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise


def _create_version(client: "MlflowClient", request: RegistrationRequest) -> "ModelVersion":
    model_id = _upload(client, request)
    return client.create_model_version(
        request.name,
        source=f"models:/{model_id}",
        run_id=request.run_id,
        tags=request.lineage.tags() | {Tag.MODEL_ID.value: model_id},
        model_id=model_id,
        await_creation_for=0,
    )


def _upload(client: "MlflowClient", request: RegistrationRequest) -> str:
    experiment_id = client.get_run(request.run_id).info.experiment_id
    fingerprint = request.lineage.fingerprint
    found = client.search_logged_models([experiment_id], f"tags.`{Tag.FINGERPRINT}` = '{fingerprint}'", max_results=1)
    model = (
        found[0]
        if found
        else client.create_logged_model(
            experiment_id,
            name=request.name.replace(".", "-"),  # a logged model's name may hold no dot
            source_run_id=request.run_id,
            tags={Tag.FINGERPRINT.value: fingerprint},
            model_type="lora-adapter" if request.adapter else "full",
        )
    )
    if model.status != "READY":
        _upload_files(client, model.model_id, request)
        client.finalize_logged_model(model.model_id, "READY")
    return str(model.model_id)


def _upload_files(client: "MlflowClient", model_id: str, request: RegistrationRequest) -> None:
    documents = {
        CONFIG_FILE: request.config_yaml,
        VERDICT_FILE: request.lineage.verdict.model_dump_json(indent=1),
        MergedModel.CERTIFICATE: request.lineage.certificate.model_dump_json(indent=1),
        PreparedData.RECEIPT: request.receipt.read_text(encoding="utf-8"),
    }
    with tempfile.TemporaryDirectory() as folder:
        for name, text in documents.items():
            (Path(folder) / name).write_text(text, encoding="utf-8")
        client.log_model_artifacts(model_id, folder)
    if request.adapter:
        client.log_model_artifacts(model_id, str(request.adapter), ADAPTER_FOLDER)


def _set_tags(registry: Registry, name: str, version: str, tags: dict[Tag, str]) -> None:
    with registry.calls() as client:
        for tag, value in tags.items():
            client.set_model_version_tag(name, version, tag.value, value)


def _aliases_of(model: "MlflowModel", version: str) -> tuple[str, ...]:
    return tuple(sorted(alias for alias, holder in model.aliases.items() if str(holder) == version))


def _info(version: "ModelVersion", aliases: tuple[str, ...]) -> VersionInfo:
    tags = version.tags
    return VersionInfo(
        name=version.name,
        version=str(version.version),
        aliases=aliases,
        created_at=datetime.fromtimestamp(version.creation_timestamp / 1000, UTC).isoformat(timespec="seconds"),
        run_id=version.run_id,
        run=tags.get(Tag.RUN),
        verdict=tags.get(Tag.VERDICT),
        compared_champion=tags.get(Tag.COMPARED_CHAMPION),
        merged_sha256=tags.get(Tag.MERGED),
        merged_fingerprint=tags.get(Tag.MERGED_FINGERPRINT),
        image_digest=tags.get(Tag.IMAGE_DIGEST),
        image_reference=tags.get(Tag.IMAGE_REFERENCE),
        smoke=tags.get(Tag.SMOKE),
        report=tags.get(Tag.REPORT),
    )
