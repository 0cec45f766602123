"""Put a written image into the local engine without moving its base.

`docker load` of Docker's archive format takes a layer's file only when the engine lacks the chain of layers up to it.
So the archive that we stream names the base's layers and holds only ours: the model's bytes move once, the base's
never. An engine with the containerd image store wants every layer; it gets the base's out of its own `docker save`.
"""

import io
import json
import shutil
import subprocess
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from tuneline.contracts.artifacts import ServingImage
from tuneline.contracts.errors import StageFailed, UserError
from tuneline.serving.base_image import BLOCK_BYTES, JSON_LIMIT_BYTES, saved_image
from tuneline.serving.engine import DockerError, Progress, docker, docker_refused, ignore_progress, require_engine
from tuneline.serving.oci import STOP_IDS_LABEL

CONFIG_NAME = "tuneline-config.json"
MANIFEST_NAME = "manifest.json"


def load_image(image: ServingImage, layout: Path, progress: Progress = ignore_progress) -> None:
    """See that the engine holds an image under its tag; load it from its layout when it does not.

    Args:
        image: the image's record.
        layout: its OCI layout.
        progress: told about bytes sent to the engine.

    Raises:
        ServiceUnavailable: Docker is not reachable.
        UserError: the base image is gone from the engine.
        StageFailed: the engine holds something else under the tag after loading.
    """
    engine = require_engine()
    by_id = not engine.containerd_store
    if holds(image, layout, by_id=by_id):
        return
    if _loaded_layers(image.base_id) is None:
        raise UserError.of(
            f"the base {image.base_name} ({image.base_id[:19]}) is no longer on this engine",
            image.reference,
            "pull or build the base again, then package again",
        )
    with _docker_load(image) as stream:
        if engine.containerd_store:
            send_full_archive(image, layout, stream, progress)
        else:
            send_thin_archive(image, layout, stream, progress)
    if not holds(image, layout, by_id=by_id):
        raise StageFailed(
            "package", "failed", f"after loading, {image.reference} is not {image.image_id} in the engine"
        )


def send_thin_archive(image: ServingImage, layout: Path, stream: IO[bytes], progress: Progress) -> None:
    """Write Docker's archive of an image to a stream, the base's layers named but absent."""
    absent = [f"base/{index}/layer.tar" for index in range(_base_layer_count(image, layout))]
    _send_own(stream, image, layout, absent, progress)


def send_full_archive(image: ServingImage, layout: Path, stream: IO[bytes], progress: Progress) -> None:
    """Write Docker's archive of an image to a stream, with the base's layers as its engine saves them."""
    base_manifest = b""
    with saved_image(image.base_id) as saved:
        for member in saved:
            content = saved.extractfile(member) if member.isfile() else None
            if member.name == MANIFEST_NAME and content is not None:
                base_manifest = content.read(JSON_LIMIT_BYTES)
            elif member.name not in ("index.json", "oci-layout", "repositories"):
                _send_member(stream, member, content)
    _send_own(stream, image, layout, json.loads(base_manifest)[0]["Layers"], progress)


def holds(image: ServingImage, layout: Path, *, by_id: bool) -> bool:
    """Whether the engine has, under the image's tag, what was written.

    Args:
        image: the image's record.
        layout: its OCI layout.
        by_id: the engine names images by their config's digest, so the id must be equal too.
    """
    if _loaded_layers(image.reference) != _expected_layers(image, layout):
        return False
    return not by_id or docker(["image", "inspect", "--format", "{{.Id}}", image.reference]) == image.image_id


def own_blobs(image: ServingImage, layout: Path) -> list[Path]:
    """Files of the layers that the layout holds, in their order in the image."""
    return [_blob(layout, digest) for digest in _expected_layers(image, layout)[_base_layer_count(image, layout) :]]


def _send_own(stream: IO[bytes], image: ServingImage, layout: Path, base_layers: list[str], progress: Progress) -> None:
    own = own_blobs(image, layout)
    total_bytes = sum(path.stat().st_size for path in own)
    sent_bytes = 0
    for path in own:
        with path.open("rb") as content:
            _send_member(stream, _entry(f"{path.name}/layer.tar", path.stat().st_size), content)
        sent_bytes += path.stat().st_size
        progress(sent_bytes, total_bytes, "loading into the engine")
    manifest = {
        "Config": CONFIG_NAME,
        "RepoTags": [image.reference],
        "Layers": base_layers + [f"{path.name}/layer.tar" for path in own],
    }
    config = _blob(layout, image.image_id).read_bytes()
    for name, text in ((CONFIG_NAME, config), (MANIFEST_NAME, json.dumps([manifest]).encode())):
        _send_member(stream, _entry(name, len(text)), io.BytesIO(text))
    stream.write(bytes(2 * tarfile.BLOCKSIZE))


def _send_member(stream: IO[bytes], entry: tarfile.TarInfo, content: IO[bytes] | None) -> None:
    stream.write(entry.tobuf(format=tarfile.GNU_FORMAT))
    if content is not None:
        shutil.copyfileobj(content, stream, BLOCK_BYTES)
        stream.write(bytes(-entry.size % tarfile.BLOCKSIZE))


def _entry(name: str, size_bytes: int) -> tarfile.TarInfo:
    entry = tarfile.TarInfo(name)
    entry.size = size_bytes
    return entry


def stop_token_ids(image: ServingImage, layout: Path) -> frozenset[int]:
    """Token ids that end the model's answers, as the image's label says."""
    label = _config(image, layout)["config"]["Labels"][STOP_IDS_LABEL]
    return frozenset(int(token) for token in label.split(",") if token)


@contextmanager
def _docker_load(image: ServingImage) -> Iterator[IO[bytes]]:
    command = ["docker", "load", "--quiet"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as process:
        assert process.stdin is not None and process.stderr is not None
        try:
            yield process.stdin
            process.stdin.close()
        except BrokenPipeError as error:
            raise docker_refused(["load", image.reference], process.stderr.read().decode()) from error
        except BaseException:
            process.kill()
            raise
        if process.wait() != 0:
            raise docker_refused(["load", image.reference], process.stderr.read().decode())


def _loaded_layers(reference: str) -> list[str] | None:
    try:
        return list(json.loads(docker(["image", "inspect", "--format", "{{json .RootFS.Layers}}", reference])))
    except DockerError as error:
        if "No such image" in str(error):
            return None
        raise


def _expected_layers(image: ServingImage, layout: Path) -> list[str]:
    return list(_config(image, layout)["rootfs"]["diff_ids"])


def _config(image: ServingImage, layout: Path) -> dict[str, Any]:
    config: dict[str, Any] = json.loads(_blob(layout, image.image_id).read_bytes())
    return config


def _base_layer_count(image: ServingImage, layout: Path) -> int:
    return len(_expected_layers(image, layout)) - image.own_layers


def _blob(layout: Path, digest: str) -> Path:
    return layout / "blobs" / "sha256" / digest.removeprefix("sha256:")
