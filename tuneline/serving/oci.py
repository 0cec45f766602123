"""An OCI image layout on disk (image-spec 1.1): our layers on a base image whose blobs stay in the engine.

The layout is thin: the manifest names the base's layers by digest and size, but only our own blobs are in the folder,
so a model takes its weights' bytes once. Nothing in it depends on the time or the machine: equal inputs, equal digests.
"""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from tuneline.contracts.errors import UserError
from tuneline.serving.base_image import BaseImage
from tuneline.serving.layers import SERVER_GID, SERVER_UID, Blob, LayerFile, LayerLink, write_layer

MANIFEST_TYPE: Final = "application/vnd.oci.image.manifest.v1+json"
CONFIG_TYPE: Final = "application/vnd.oci.image.config.v1+json"
LAYER_TYPE: Final = "application/vnd.oci.image.layer.v1.tar"
INDEX_TYPE: Final = "application/vnd.oci.image.index.v1+json"
STOP_IDS_LABEL: Final = "io.tuneline.stop-token-ids"
"""Token ids that end the model's answers, separated by commas."""
TAG_ANNOTATION: Final = "org.opencontainers.image.ref.name"


@dataclass(frozen=True)
class LayerContent:
    """What one layer adds, and the line about it in the image's history."""

    comment: str
    files: tuple[LayerFile, ...]
    directories: tuple[str, ...]
    links: tuple[LayerLink, ...] = ()


@dataclass(frozen=True)
class ImageChange:
    """What the image has beyond its base: layers, command, labels and environment; a variable of the base stays."""

    layers: tuple[LayerContent, ...]
    command: tuple[str, ...]
    labels: Mapping[str, str]
    environment: Mapping[str, str]
    ports: tuple[str, ...]
    created_epoch_seconds: int


@dataclass(frozen=True)
class OciImage:
    """A written layout: digests of its manifest and config; `config_digest` is what Docker calls the image id."""

    manifest_digest: str
    config_digest: str


def write_image(
    layout: Path,
    base: BaseImage,
    change: ImageChange,
    tag_for: Callable[[str], str],
    copied: Callable[[int], None],
) -> OciImage:
    """Write an image layout.

    Args:
        layout: folder to make; it must not exist.
        base: the image below ours.
        change: what is added.
        tag_for: names the image, given its config digest.
        copied: told the number of bytes after each piece of a layer.

    Raises:
        UserError: the base has no entry point, or a file cannot be archived.
    """
    blob_dir = layout / "blobs" / "sha256"
    blob_dir.mkdir(parents=True)
    own = [write_layer(blob_dir, layer.files, layer.directories, copied, layer.links) for layer in change.layers]
    config = _write_json(blob_dir, image_config(base, change, own))
    layers = [Blob(layer.diff_id, layer.size_bytes) for layer in base.layers] + own
    manifest = _write_json(
        blob_dir,
        {
            "schemaVersion": 2,
            "mediaType": MANIFEST_TYPE,
            "config": _descriptor(CONFIG_TYPE, config),
            "layers": [_descriptor(LAYER_TYPE, layer) for layer in layers],
        },
    )
    tagged = _descriptor(MANIFEST_TYPE, manifest) | {"annotations": {TAG_ANNOTATION: tag_for(config.digest)}}
    index = {"schemaVersion": 2, "mediaType": INDEX_TYPE, "manifests": [tagged]}
    (layout / "index.json").write_bytes(_json_bytes(index))
    (layout / "oci-layout").write_bytes(_json_bytes({"imageLayoutVersion": "1.0.0"}))
    return OciImage(manifest_digest=manifest.digest, config_digest=config.digest)


def image_config(base: BaseImage, change: ImageChange, own_layers: Sequence[Blob]) -> dict[str, object]:
    """Derive the image's config from its base's: the platform and entry point kept, our additions on top.

    Raises:
        UserError: the base has no entry point for the command's arguments.
    """
    saved = json.loads(base.config_json)
    runtime = saved.get("config") or {}
    if not runtime.get("Entrypoint"):
        raise UserError.of(
            "the image has no entry point, so it is no server to which a model can be added",
            "serving.base_image",
            "name an image of vLLM's OpenAI server, as vllm/vllm-openai",
        )
    created = datetime.fromtimestamp(change.created_epoch_seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    history = [{"created": created, "created_by": f"tuneline: {layer.comment}"} for layer in change.layers]
    return {
        **{key: saved[key] for key in ("architecture", "os", "variant", "os.version") if key in saved},
        "created": created,
        "config": {
            **{key: value for key, value in runtime.items() if key in ("Entrypoint", "StopSignal", "WorkingDir")},
            "User": f"{SERVER_UID}:{SERVER_GID}",
            "Cmd": list(change.command),
            "Env": _with_missing(runtime.get("Env") or [], change.environment),
            "ExposedPorts": {**(runtime.get("ExposedPorts") or {}), **{port: {} for port in change.ports}},
            "Labels": {**(runtime.get("Labels") or {}), **change.labels, "org.opencontainers.image.created": created},
        },
        "rootfs": {
            "type": "layers",
            "diff_ids": [layer.diff_id for layer in base.layers] + [blob.digest for blob in own_layers],
        },
        "history": [*saved.get("history", []), *history],
    }


def base_created_epoch_seconds(base: BaseImage) -> int:
    """Time at which the base image was made: the default of `created`, since it is the same for the same inputs."""
    created = json.loads(base.config_json)["created"]
    return int(datetime.fromisoformat(created[:19] + "+00:00").timestamp())  # Docker writes nanoseconds and Z


def _with_missing(environment: Sequence[str], additions: Mapping[str, str]) -> list[str]:
    present = {entry.partition("=")[0] for entry in environment}
    return [*environment, *(f"{name}={value}" for name, value in sorted(additions.items()) if name not in present)]


def _descriptor(media_type: str, blob: Blob) -> dict[str, object]:
    return {"mediaType": media_type, "digest": blob.digest, "size": blob.size_bytes}


def _write_json(blob_dir: Path, document: Mapping[str, object]) -> Blob:
    content = _json_bytes(document)
    digest = hashlib.sha256(content).hexdigest()
    (blob_dir / digest).write_bytes(content)
    return Blob(f"sha256:{digest}", len(content))


def _json_bytes(document: Mapping[str, object]) -> bytes:
    return json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=True).encode()
