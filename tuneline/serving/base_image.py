"""Facts about a base image that its engine knows: its config, and the digest and size of each layer.

An engine tells a layer's digest but not the size of its tar archive, which an OCI descriptor must hold; so the image is
streamed once through `docker save` (4.3 GB in 52 s on two cores) and the answer is kept per image id.
"""

import gzip
import io
import json
import posixpath
import subprocess
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, cast

from tuneline.contracts.artifacts import Record
from tuneline.contracts.errors import UserError
from tuneline.contracts.store import write_whole
from tuneline.serving.engine import DockerError, Progress, docker, docker_refused, ignore_progress

BLOCK_BYTES = 8 << 20
JSON_LIMIT_BYTES = 4 << 20
"""The largest archive member that is kept as text; an image's config has a few KB."""
GZIP_MAGIC, ZSTD_MAGIC = b"\x1f\x8b", b"\x28\xb5\x2f\xfd"


class BaseLayer(Record):
    """A layer of the base: digest and size of its uncompressed tar."""

    diff_id: str
    size_bytes: int


class BaseImage(Record):
    """A base image as the local engine holds it."""

    image_id: str
    config_json: str
    layers: tuple[BaseLayer, ...]


def read_base_image(reference: str, cache_dir: Path, progress: Progress = ignore_progress) -> BaseImage:
    """Return the facts of a base image of the local engine.

    Args:
        reference: the image's name, tag or digest.
        cache_dir: folder that keeps the answer, a file for each image id.
        progress: told about bytes of the image read.

    Raises:
        UserError: the engine does not have the image, or keeps it in a form whose layer sizes cannot be told.
    """
    image_id, size_bytes = _identify(reference)
    cached = cache_dir / f"{image_id.removeprefix('sha256:')}.json"
    if cached.exists():
        return BaseImage.model_validate_json(cached.read_text(encoding="utf-8"))
    base = _read_saved(reference, image_id, size_bytes, progress)
    cache_dir.mkdir(parents=True, exist_ok=True)
    write_whole(cached, base.model_dump_json(indent=1))
    return base


@contextmanager
def saved_image(reference: str) -> Iterator[tarfile.TarFile]:
    """Stream an image's archive out of the engine; members can only be read in order."""
    with subprocess.Popen(["docker", "save", reference], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stderr is not None
        try:
            with tarfile.open(fileobj=process.stdout, mode="r|", bufsize=BLOCK_BYTES) as archive:
                yield archive
            while process.stdout.read(BLOCK_BYTES):  # the padding after the last member
                pass
        except tarfile.ReadError as error:
            raise docker_refused(["save", reference], process.stderr.read().decode()) from error
        finally:
            process.kill()


def _identify(reference: str) -> tuple[str, int]:
    try:
        image_id, size = docker(["image", "inspect", "--format", "{{.Id}} {{.Size}}", reference]).split()
    except DockerError as error:
        if "No such image" not in str(error):
            raise
        raise UserError.of(
            f"the engine has no image {reference}",
            "serving.base_image",
            f"docker pull {reference}, or build it: the CPU base is docker/vllm-cpu.Dockerfile",
        ) from error
    return image_id, int(size)


def _read_saved(reference: str, image_id: str, size_bytes: int, progress: Progress) -> BaseImage:
    texts: dict[str, bytes] = {}
    sizes: dict[str, int] = {}
    read_bytes = 0
    with saved_image(reference) as archive:
        for member in archive:
            if member.issym() or member.islnk():  # a layer that occurs twice is stored once
                sizes[member.name] = sizes[_target(member)]
            elif member.isfile():
                content = archive.extractfile(member)
                assert content is not None
                sizes[member.name], head = _measure(content, reference)
                if member.size <= JSON_LIMIT_BYTES:
                    texts[member.name] = head
            read_bytes += member.size
            progress(min(read_bytes, size_bytes), size_bytes, f"reading {reference}")
    entry = json.loads(texts["manifest.json"])[0]
    config_json = texts[entry["Config"]].decode()
    diff_ids = json.loads(config_json)["rootfs"]["diff_ids"]
    layers = zip(diff_ids, entry["Layers"], strict=True)
    return BaseImage(
        image_id=image_id,
        config_json=config_json,
        layers=tuple(BaseLayer(diff_id=diff_id, size_bytes=sizes[name]) for diff_id, name in layers),
    )


def _target(member: tarfile.TarInfo) -> str:
    if member.islnk():
        return member.linkname
    return posixpath.normpath(posixpath.join(posixpath.dirname(member.name), member.linkname))


def _measure(member_stream: IO[bytes], reference: str) -> tuple[int, bytes]:
    """Count a member's bytes after gunzip; also give its first bytes, at most `JSON_LIMIT_BYTES`.

    The containerd image store keeps layers as they were pulled, mostly gzipped.
    """
    with io.BufferedReader(cast(io.RawIOBase, member_stream)) as buffered:
        magic = buffered.peek(4)
        if magic.startswith(ZSTD_MAGIC):
            raise UserError.of(
                f"{reference} has layers compressed with zstd, whose unpacked size this engine does not tell",
                "serving.base_image",
                "use a base with gzip layers, or build the base on this engine",
            )
        content = gzip.GzipFile(fileobj=buffered) if magic.startswith(GZIP_MAGIC) else buffered
        head = content.read(JSON_LIMIT_BYTES)
        size_bytes = len(head)
        while block := content.read(BLOCK_BYTES):
            size_bytes += len(block)
    return size_bytes, head
