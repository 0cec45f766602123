"""The image layout: reproducible, thin, and true to its base and to the model's record."""

import io
import json
import tarfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from serving_images import PROVENANCE, SPEC, WEIGHTS_SHA256, described_base, merged_model, packaged, write_model

from tuneline.contracts.artifacts import ServingImage
from tuneline.contracts.errors import UserError
from tuneline.serving.base_image import BaseLayer
from tuneline.serving.image import image_tag, package_model


def blob(out_dir: Path, digest: str) -> bytes:
    return (out_dir / ServingImage.LAYOUT / "blobs" / "sha256" / digest.removeprefix("sha256:")).read_bytes()


def document(out_dir: Path, digest: str) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(blob(out_dir, digest))
    return content


def settings_of(out_dir: Path, image: ServingImage) -> dict[str, bytes]:
    digest = document(out_dir, image.manifest_digest)["layers"][-1]["digest"]
    with tarfile.open(fileobj=io.BytesIO(blob(out_dir, digest))) as archive:
        return {m.name: archive.extractfile(m).read() for m in archive if m.isfile()}


def test_the_same_inputs_give_the_same_digests_in_two_folders(tmp_path: Path) -> None:
    images = [
        packaged(write_model(tmp_path / name / "model"), described_base(), tmp_path / name) for name in ("one", "two")
    ]
    assert images[0] == images[1]


def test_another_byte_of_weights_gives_another_digest(tmp_path: Path) -> None:
    changed = write_model(tmp_path / "two" / "model")
    (changed / "model-00002-of-00002.safetensors").write_bytes(b"\x02" * 1001 + b"\x03")
    one = packaged(write_model(tmp_path / "one" / "model"), described_base(), tmp_path / "one")
    assert packaged(changed, described_base(), tmp_path / "two").manifest_digest != one.manifest_digest


def test_the_manifest_names_the_bases_layers_whose_bytes_are_not_copied(tmp_path: Path) -> None:
    image = packaged(write_model(tmp_path / "model"), described_base(), tmp_path)
    layers = document(tmp_path, image.manifest_digest)["layers"]
    assert [(layer["digest"], layer["size"]) for layer in layers[:2]] == [
        ("sha256:" + "1" * 64, 4096),
        ("sha256:" + "2" * 64, 8192),
    ]
    assert {layer["mediaType"] for layer in layers} == {"application/vnd.oci.image.layer.v1.tar"}
    held = {path.name for path in (tmp_path / ServingImage.LAYOUT / "blobs" / "sha256").iterdir()}
    own = {layer["digest"].removeprefix("sha256:") for layer in layers[2:]}
    assert held == own | {image.manifest_digest.removeprefix("sha256:"), image.image_id.removeprefix("sha256:")}
    assert (image.own_layers, len(own)) == (4, 4)  # two shards, small files, settings


def test_every_own_descriptor_has_the_size_of_its_blob(tmp_path: Path) -> None:
    image = packaged(write_model(tmp_path / "model"), described_base(), tmp_path)
    manifest = document(tmp_path, image.manifest_digest)
    described = [manifest["config"], *manifest["layers"][2:]]
    assert [entry["size"] for entry in described] == [len(blob(tmp_path, entry["digest"])) for entry in described]


def test_the_config_keeps_the_bases_server_and_adds_user_command_and_offline_environment(tmp_path: Path) -> None:
    image = packaged(write_model(tmp_path / "model"), described_base(), tmp_path)
    config = document(tmp_path, image.image_id)
    runtime = config["config"]
    assert (runtime["Entrypoint"], runtime["Cmd"]) == (["vllm", "serve"], ["--config", "/etc/tuneline/vllm.yaml"])
    assert runtime["User"] == "2000:0"
    assert "HF_HUB_OFFLINE=0" in runtime["Env"], "a variable of the base stays"
    assert {"TRANSFORMERS_OFFLINE=1", "VLLM_NO_USAGE_STATS=1", "HOME=/home/vllm"} <= set(runtime["Env"])
    assert "container" not in config
    filled = [entry for entry in config["history"] if not entry.get("empty_layer")]
    assert len(filled) == len(config["rootfs"]["diff_ids"]) == 6


def test_labels_say_where_the_model_came_from(tmp_path: Path) -> None:
    image = packaged(write_model(tmp_path / "model"), described_base(), tmp_path)
    labels = document(tmp_path, image.image_id)["config"]["Labels"]
    expected = {
        "maintainer": "somebody",
        "org.opencontainers.image.base.name": "tuneline-test/base",
        "org.opencontainers.image.created": "2026-11-01T12:00:00Z",
        "org.opencontainers.image.revision": "0123abc",
        "io.tuneline.run": "nightly",
        "io.tuneline.model.name": "support-bot",
        "io.tuneline.verdict": "PROMOTE",
        "io.tuneline.adapter.sha256": "ada9" * 16,
        "io.tuneline.weights.sha256": WEIGHTS_SHA256,
        "io.tuneline.stop-token-ids": "2",
    }
    assert expected.items() <= labels.items()


def test_a_given_time_is_the_images_created_even_when_it_is_the_epoch(tmp_path: Path) -> None:
    model = write_model(tmp_path / "model")
    image = package_model(
        merged_model(), model, "b", described_base(), SPEC, PROVENANCE, tmp_path, created_epoch_seconds=0
    )
    assert document(tmp_path, image.image_id)["created"] == "1970-01-01T00:00:00Z"


def test_the_settings_layer_configures_the_server_and_carries_the_provenance(tmp_path: Path) -> None:
    image = packaged(write_model(tmp_path / "model"), described_base(), tmp_path)
    files = settings_of(tmp_path, image)
    settings = yaml.safe_load(files["etc/tuneline/vllm.yaml"])
    expected = {
        "model": "/model",
        "served-model-name": "support-bot",
        "max-model-len": 256,
        "enforce-eager": True,
        "shutdown-timeout": SPEC.drain_seconds,
        "generation-config": "vllm",
        "fingerprint-value": WEIGHTS_SHA256[:16],
    }
    assert expected.items() <= settings.items()
    facts = json.loads(files["etc/tuneline/provenance.json"])
    assert (facts["run"], facts["verdict"], facts["fingerprints"]) == ("nightly", "PROMOTE", {"merge": "f00d"})
    compile(files["etc/tuneline/ask.py"], "ask.py", "exec")


def test_the_weights_are_also_where_a_modelcar_is_looked_for(tmp_path: Path) -> None:
    image = packaged(write_model(tmp_path / "model"), described_base(), tmp_path)
    digest = document(tmp_path, image.manifest_digest)["layers"][-1]["digest"]
    with tarfile.open(fileobj=io.BytesIO(blob(tmp_path, digest))) as archive:
        link = archive.getmember("models")
    assert (link.issym(), link.linkname) == (True, "model")


def test_an_open_context_length_is_left_to_the_server(tmp_path: Path) -> None:
    spec = SPEC.model_copy(update={"max_model_len": None})
    image = packaged(write_model(tmp_path / "model"), described_base(), tmp_path, spec=spec)
    assert "max-model-len" not in yaml.safe_load(settings_of(tmp_path, image)["etc/tuneline/vllm.yaml"])


def test_a_shard_that_differs_from_its_record_never_becomes_an_image(tmp_path: Path) -> None:
    recorded = replace(PROVENANCE, file_sha256={"model-00001-of-00002.safetensors": "0" * 64})
    model = write_model(tmp_path / "model")
    with pytest.raises(UserError, match="changed since it was made"):
        package_model(merged_model(), model, "b", described_base(), SPEC, recorded, tmp_path)


def test_a_base_without_an_entry_point_is_refused(tmp_path: Path) -> None:
    base = described_base()
    bare = base.model_copy(update={"config_json": base.config_json.replace('"Entrypoint"', '"Unused"')})
    with pytest.raises(UserError, match="no entry point"):
        packaged(write_model(tmp_path / "model"), bare, tmp_path)


def test_a_folder_without_weights_and_an_image_of_too_many_layers_are_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"no \.safetensors file"):
        packaged(tmp_path / "empty", described_base(), tmp_path / "a")
    layer = BaseLayer(diff_id="sha256:" + "1" * 64, size_bytes=1)
    deep = described_base().model_copy(update={"layers": (layer,) * 122})
    with pytest.raises(UserError, match="126 layers"):
        packaged(write_model(tmp_path / "model"), deep, tmp_path / "b")


@pytest.mark.parametrize(
    ("model_name", "repository"), [("bot", "bot"), ("a..b", "a-b"), ("qwen3-8b_v1.2", "qwen3-8b_v1.2"), ("x-", "x")]
)
def test_the_tag_is_a_repository_that_docker_takes_and_the_images_short_id(model_name: str, repository: str) -> None:
    assert image_tag(model_name, "sha256:" + "c0ffee" * 10 + "0000") == f"tuneline/{repository}:c0ffeec0ffee"
