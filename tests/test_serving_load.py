"""Loading into a real engine: our layers only, the id that was written, files with the owner that was meant."""

import io
import json
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from serving_images import built_image, docker_output, engine_answers, has_image, packaged, tiny_base, write_model

from tuneline.contracts.artifacts import ServingImage
from tuneline.contracts.errors import UserError
from tuneline.serving.base_image import read_base_image
from tuneline.serving.engine import ignore_progress
from tuneline.serving.load import holds, load_image, own_blobs, send_full_archive, send_thin_archive

pytestmark = pytest.mark.skipif(not engine_answers(), reason="no Docker engine answers")
BASE = "tuneline-test/load-base:1"


@pytest.fixture
def base_name(tmp_path: Path) -> Iterator[str]:
    context = tmp_path / "context"
    context.mkdir()
    with tiny_base(BASE, context) as tag:
        yield tag


@pytest.fixture
def image(tmp_path: Path, base_name: str) -> Iterator[ServingImage]:
    base = read_base_image(base_name, tmp_path / "cache")
    written = packaged(write_model(tmp_path / "model"), base, tmp_path, base_name)
    yield written
    subprocess.run(["docker", "rmi", "--force", written.reference], capture_output=True, check=False)


def saved_layer_sizes(reference: str) -> list[int]:
    with tarfile.open(fileobj=io.BytesIO(subprocess.check_output(["docker", "save", reference]))) as archive:
        manifest = archive.extractfile("manifest.json")
        assert manifest is not None
        return [archive.getmember(name).size for name in json.load(manifest)[0]["Layers"]]


def test_facts_of_a_base_are_the_engines_own_and_are_kept_for_the_next_time(tmp_path: Path, base_name: str) -> None:
    base = read_base_image(base_name, tmp_path / "cache")
    sizes = sorted(saved_layer_sizes(base_name))
    assert sorted(layer.size_bytes for layer in base.layers) == sizes
    assert base.image_id == docker_output("image", "inspect", "--format", "{{.Id}}", base_name)
    (kept,) = (tmp_path / "cache").iterdir()
    kept.write_text(kept.read_text().replace(str(sizes[0]), "12345"), encoding="utf-8")
    assert 12345 in [layer.size_bytes for layer in read_base_image(base_name, tmp_path / "cache").layers]


def test_a_base_that_the_engine_lacks_is_named_with_the_way_to_get_it(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="docker pull tuneline-test/absent:0"):
        read_base_image("tuneline-test/absent:0", tmp_path)


def test_the_engine_gives_a_thin_archive_the_id_that_was_written(tmp_path: Path, image: ServingImage) -> None:
    load_image(image, tmp_path / ServingImage.LAYOUT)
    assert docker_output("image", "inspect", "--format", "{{.Id}}", image.reference) == image.image_id


def test_a_thin_archive_holds_none_of_the_bases_layers(tmp_path: Path, image: ServingImage) -> None:
    stream = io.BytesIO()
    send_thin_archive(image, tmp_path / ServingImage.LAYOUT, stream, ignore_progress)
    with tarfile.open(fileobj=io.BytesIO(stream.getvalue())) as archive:
        names = archive.getnames()
    own = [f"{path.name}/layer.tar" for path in own_blobs(image, tmp_path / ServingImage.LAYOUT)]
    assert sorted(names) == sorted([*own, "manifest.json", "tuneline-config.json"])


def test_files_in_the_container_belong_to_the_servers_user(tmp_path: Path, image: ServingImage) -> None:
    load_image(image, tmp_path / ServingImage.LAYOUT)
    container = docker_output("create", image.reference)
    try:
        exported = subprocess.check_output(["docker", "export", container])
        with tarfile.open(fileobj=io.BytesIO(exported)) as archive:
            found = {member.name.rstrip("/"): (member.uid, member.gid, member.mode & 0o777) for member in archive}
    finally:
        docker_output("rm", container)
    assert found["model/model-00001-of-00002.safetensors"] == (2000, 0, 0o644)
    assert found["model"] == found["home/vllm"] == (2000, 0, 0o775)
    assert found["etc"][0] == 0, "folders of the base keep their owner"


def test_an_image_that_is_there_is_not_loaded_again(tmp_path: Path, image: ServingImage) -> None:
    load_image(image, tmp_path / ServingImage.LAYOUT)
    reports: list[str] = []
    load_image(image, tmp_path / ServingImage.LAYOUT, lambda done, total, what: reports.append(what))
    assert reports == []


def test_a_full_archive_loads_where_the_base_has_gone(tmp_path: Path, image: ServingImage) -> None:
    archive = tmp_path / "full.tar"
    with archive.open("wb") as stream:
        send_full_archive(image, tmp_path / ServingImage.LAYOUT, stream, ignore_progress)
    docker_output("rmi", BASE)
    docker_output("load", "--input", str(archive))
    assert holds(image, tmp_path / ServingImage.LAYOUT, by_id=True)


def test_a_base_that_has_gone_stops_the_load_with_its_name(tmp_path: Path, image: ServingImage) -> None:
    docker_output("rmi", BASE)
    with pytest.raises(UserError, match="no longer on this engine"):
        load_image(image, tmp_path / ServingImage.LAYOUT)
    assert not has_image(image.reference)


def test_the_same_layers_under_the_tag_with_another_config_are_noticed_and_mended(
    tmp_path: Path, image: ServingImage
) -> None:
    layout = tmp_path / ServingImage.LAYOUT
    load_image(image, layout)
    with built_image("tuneline-test/relabelled:1", f"FROM {image.reference}\nLABEL io.tuneline.verdict=X\n", tmp_path):
        docker_output("tag", "tuneline-test/relabelled:1", image.reference)
    assert not holds(image, layout, by_id=True)
    load_image(image, layout)
    assert holds(image, layout, by_id=True)
