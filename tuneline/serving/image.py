"""The serving image of a merged model: which files go into which layer, and what its labels say."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tuneline.contracts.artifacts import MergedModel, ServingImage
from tuneline.contracts.errors import UserError
from tuneline.contracts.spec import ServingSpec
from tuneline.serving.base_image import BaseImage
from tuneline.serving.engine import Progress, ignore_progress
from tuneline.serving.layers import LayerFile, LayerLink
from tuneline.serving.oci import STOP_IDS_LABEL, ImageChange, LayerContent, base_created_epoch_seconds, write_image
from tuneline.serving.server_settings import (
    ASK_FILE,
    HOME_DIR,
    MODEL_DIR,
    PORT,
    PROVENANCE_FILE,
    SETTINGS_DIR,
    SETTINGS_FILE,
    server_environment,
    vllm_settings,
)

LAYER_LIMIT: Final = 125
"""Layers that Docker's overlay2 driver can stack: 128, less the three that a running container may add."""
SHORT_DIGEST_LENGTH: Final = 12
MODELCAR_LINK: Final = LayerLink("/models", MODEL_DIR.removeprefix("/"))
"""Where KServe's modelcar looks; it reads through /proc/PID/root, and an absolute link would lead out of the image."""


@dataclass(frozen=True)
class Provenance:
    """Where a model came from.

    `fingerprints` name the artifacts it was made of, by stage; `file_sha256` holds the hex digests of the merged
    model's files by path below the model folder; `verdict` is the gate's answer, or `NONE` where it was not asked.
    """

    run_name: str
    model_name: str
    verdict: str
    adapter_sha256: str | None
    revision: str | None
    fingerprints: Mapping[str, str]
    file_sha256: Mapping[str, str]


def package_model(
    merged: MergedModel,
    model_dir: Path,
    base_name: str,
    base: BaseImage,
    spec: ServingSpec,
    provenance: Provenance,
    out_dir: Path,
    created_epoch_seconds: int | None = None,
    progress: Progress = ignore_progress,
) -> ServingImage:
    """Write the image of a merged model as a thin OCI layout, `out_dir/ServingImage.LAYOUT`.

    Args:
        merged: the model's record.
        model_dir: folder of its shards, config and tokenizer.
        base_name: reference of the base image, as the config names it.
        base: facts of that image.
        spec: the config's serving section.
        provenance: what the labels and `/etc/tuneline/provenance.json` say.
        out_dir: folder of the artifact.
        created_epoch_seconds: the image's `created` (SOURCE_DATE_EPOCH, a commit's time); the base's own when absent.
        progress: told about bytes copied.

    Raises:
        UserError: there are no weights, too many layers, a damaged file, or a base without an entry point.
    """
    if created_epoch_seconds is None:
        created_epoch_seconds = base_created_epoch_seconds(base)
    layers = [*model_layers(model_dir, provenance.file_sha256), _settings_layer(merged, spec, provenance)]
    _check_layers(model_dir, len(base.layers) + len(layers))
    change = ImageChange(
        layers=tuple(layers),
        command=("--config", SETTINGS_FILE),
        labels=_labels(merged, base_name, provenance),
        environment=server_environment(spec),
        ports=(f"{PORT}/tcp",),
        created_epoch_seconds=created_epoch_seconds,
    )
    total_bytes = sum(path.stat().st_size for path in model_dir.rglob("*") if path.is_file())
    done_bytes = 0

    def copied(count: int) -> None:
        nonlocal done_bytes
        done_bytes += count
        progress(min(done_bytes, total_bytes), total_bytes, "writing layers")

    def tag(config_digest: str) -> str:
        return image_tag(provenance.model_name, config_digest)

    image = write_image(out_dir / ServingImage.LAYOUT, base, change, tag, copied)
    return ServingImage(
        reference=tag(image.config_digest),
        manifest_digest=image.manifest_digest,
        image_id=image.config_digest,
        base_name=base_name,
        base_id=base.image_id,
        weights_bytes=sum(path.stat().st_size for path in model_dir.glob("*.safetensors")),
        own_layers=len(layers),
    )


def model_layers(model_dir: Path, file_sha256: Mapping[str, str]) -> list[LayerContent]:
    """Divide a model folder into layers: one for each safetensors shard, then one for all the small files.

    The small files change most often, so they come last and the shards' layers are shared with the next image.
    """

    def content(comment: str, paths: Sequence[Path]) -> LayerContent:
        names = [path.relative_to(model_dir).as_posix() for path in paths]
        files = [
            LayerFile(f"{MODEL_DIR}/{name}", path, file_sha256.get(name))
            for name, path in zip(names, paths, strict=True)
        ]
        folders = {parent.as_posix() for name in names for parent in Path(MODEL_DIR, name).parents if parent.name}
        return LayerContent(comment, tuple(files), tuple(sorted(folders)))

    paths = sorted(path for path in model_dir.rglob("*") if path.is_file())
    shards = [path for path in paths if path.suffix == ".safetensors"]
    rest = [path for path in paths if path.suffix != ".safetensors"]
    return [*(content(f"weights {shard.name}", [shard]) for shard in shards), content("tokenizer and config", rest)]


def image_tag(model_name: str, config_digest: str) -> str:
    """Name an image after its model and its id, in the form that Docker allows a repository."""
    repository = re.sub(r"[._-]{2,}|[._-]$", "-", model_name).strip("-")
    return f"tuneline/{repository}:{config_digest.removeprefix('sha256:')[:SHORT_DIGEST_LENGTH]}"


def _settings_layer(merged: MergedModel, spec: ServingSpec, provenance: Provenance) -> LayerContent:
    weights_sha256 = merged.certificate.weights_sha256
    facts = {
        "run": provenance.run_name,
        "model": provenance.model_name,
        "verdict": provenance.verdict,
        "adapter_sha256": provenance.adapter_sha256,
        "weights_sha256": weights_sha256,
        "template_sha256": merged.template_sha256,
        "stop_token_ids": list(merged.stop_token_ids),
        "fingerprints": dict(provenance.fingerprints),
        "file_sha256": dict(provenance.file_sha256),
        "certificate": merged.certificate.model_dump(mode="json"),
    }
    files = (
        LayerFile(SETTINGS_FILE, vllm_settings(spec, provenance.model_name, weights_sha256).encode()),
        LayerFile(PROVENANCE_FILE, json.dumps(facts, indent=1, sort_keys=True).encode()),
        LayerFile(ASK_FILE, Path(__file__).with_name("ask.py").read_bytes()),
    )
    return LayerContent("settings and provenance", files, (SETTINGS_DIR, HOME_DIR), (MODELCAR_LINK,))


def _labels(merged: MergedModel, base_name: str, provenance: Provenance) -> dict[str, str]:
    labels = {
        "org.opencontainers.image.title": provenance.model_name,
        "org.opencontainers.image.version": merged.certificate.weights_sha256[:SHORT_DIGEST_LENGTH],
        "org.opencontainers.image.base.name": base_name,
        "org.opencontainers.image.revision": provenance.revision,
        "io.tuneline.model.name": provenance.model_name,
        "io.tuneline.run": provenance.run_name,
        "io.tuneline.verdict": provenance.verdict,
        "io.tuneline.adapter.sha256": provenance.adapter_sha256,
        "io.tuneline.weights.sha256": merged.certificate.weights_sha256,
        "io.tuneline.template.sha256": merged.template_sha256,
        STOP_IDS_LABEL: ",".join(map(str, merged.stop_token_ids)),
    }
    return {name: value for name, value in labels.items() if value is not None}


def _check_layers(model_dir: Path, layers: int) -> None:
    if not any(model_dir.glob("*.safetensors")):
        raise UserError.of("the folder holds no .safetensors file", str(model_dir), "merge the adapter first")
    if layers > LAYER_LIMIT:
        raise UserError.of(
            f"the image would have {layers} layers, and Docker stacks at most {LAYER_LIMIT}",
            str(model_dir),
            "merge into fewer, larger shards (up to 5 GB each)",
        )
