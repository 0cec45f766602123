"""Small models and base images for the serving tests, made here and removed by who asked for them."""

import json
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tuneline.contracts.artifacts import Certificate, MergedModel, ServingImage
from tuneline.contracts.spec import ServingSpec
from tuneline.serving.base_image import BaseImage, BaseLayer
from tuneline.serving.image import Provenance, package_model

WEIGHTS_SHA256 = "5eed" * 16
PROVENANCE = Provenance(
    run_name="nightly",
    model_name="support-bot",
    verdict="PROMOTE",
    adapter_sha256="ada9" * 16,
    revision="0123abc",
    fingerprints={"merge": "f00d"},
    file_sha256={},
)
SPEC = ServingSpec(base_image="tuneline-test/base", max_model_len=256, enforce_eager=True, max_num_seqs=8)


def engine_answers() -> bool:
    """Whether a Docker engine can be asked here."""
    try:
        return subprocess.run(["docker", "version"], capture_output=True, timeout=30, check=False).returncode == 0
    except (FileNotFoundError, subprocess.TimeoutExpired):
        return False


def has_image(reference: str) -> bool:
    """Whether the engine holds an image."""
    command = ["docker", "image", "inspect", reference]
    return engine_answers() and subprocess.run(command, capture_output=True, check=False).returncode == 0


def docker_output(*arguments: str) -> str:
    """Run docker and return what it printed."""
    done = subprocess.run(["docker", *arguments], capture_output=True, text=True, check=True, timeout=120)
    return done.stdout.strip()


@contextmanager
def built_image(tag: str, dockerfile: str, context: Path) -> Iterator[str]:
    """Build an image from a few lines, and remove it at the end."""
    (context / "Dockerfile").write_text(dockerfile, encoding="utf-8")
    docker_output("build", "--quiet", "--tag", tag, str(context))
    try:
        yield tag
    finally:
        subprocess.run(["docker", "rmi", "--force", tag], capture_output=True, check=False)


@contextmanager
def tiny_base(tag: str, context: Path) -> Iterator[str]:
    """Build a base of two layers with a few bytes, an entry point and nothing that runs."""
    (context / "licence.txt").write_text("free\n", encoding="utf-8")
    (context / "motd.txt").write_text("hello\n", encoding="utf-8")
    lines = ("FROM scratch", "COPY licence.txt /", "COPY motd.txt /etc/", 'ENTRYPOINT ["/serve"]', "ENV HOME=/srv")
    with built_image(tag, "\n".join(lines) + "\n", context) as built:
        yield built


def described_base() -> BaseImage:
    """Describe a base image without an engine."""
    config = {
        "architecture": "amd64",
        "os": "linux",
        "created": "2026-11-01T12:00:00.123456789Z",
        "config": {
            "Entrypoint": ["vllm", "serve"],
            "Cmd": ["--help"],
            "User": "root",
            "Env": ["PATH=/usr/bin", "HF_HUB_OFFLINE=0"],
            "Labels": {"maintainer": "somebody"},
        },
        "container": "8a1f",
        "rootfs": {"type": "layers", "diff_ids": ["sha256:" + "1" * 64, "sha256:" + "2" * 64]},
        "history": [{"created_by": "a"}, {"created_by": "b"}, {"created_by": "c", "empty_layer": True}],
    }
    layers = (
        BaseLayer(diff_id="sha256:" + "1" * 64, size_bytes=4096),
        BaseLayer(diff_id="sha256:" + "2" * 64, size_bytes=8192),
    )
    return BaseImage(image_id="sha256:" + "b" * 64, config_json=json.dumps(config), layers=layers)


def write_model(folder: Path) -> Path:
    """Write a model folder of two shards of noise, with the modes that safetensors gives its files."""
    folder.mkdir(parents=True)
    for number in (1, 2):
        shard = folder / f"model-{number:05}-of-00002.safetensors"
        shard.write_bytes(bytes([number]) * (1000 + number))
        shard.chmod(0o600)
    (folder / "config.json").write_text("{}", encoding="utf-8")
    (folder / "chat_template.jinja").write_text("{{ messages }}", encoding="utf-8")
    return folder


def merged_model(stop_token_ids: tuple[int, ...] = (2,)) -> MergedModel:
    """Make the record of a merged model."""
    certificate = Certificate(
        base="original",
        samples=1,
        tokens=1,
        mean_kl=0.0,
        p99_kl=0.0,
        top1_agreement=1.0,
        trained_nll=1.0,
        merged_nll=1.0,
        original_base_nll=None,
        pairs_used=1,
        tensors_changed=1,
        tensors_total=2,
        weights_sha256=WEIGHTS_SHA256,
    )
    return MergedModel(
        bytes=2003,
        shards=2,
        dtype="bfloat16",
        template_sha256="7e" * 32,
        stop_token_ids=stop_token_ids,
        certificate=certificate,
    )


def packaged(
    model_dir: Path, base: BaseImage, out_dir: Path, base_name: str = "tuneline-test/base", spec: ServingSpec = SPEC
) -> ServingImage:
    """Package a model folder with the provenance of these tests."""
    return package_model(merged_model(), model_dir, base_name, base, spec, PROVENANCE, out_dir)
