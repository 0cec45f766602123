"""Layers of our own: the same files give the same bytes, with an owner and a mode of our choice."""

import hashlib
import io
import os
import tarfile
from pathlib import Path

import pytest

from tuneline.contracts.errors import UserError
from tuneline.serving.layers import USTAR_LIMIT_BYTES, Blob, LayerFile, write_layer


def layer_of(folder: Path, files: list[LayerFile], directories: tuple[str, ...] = ("/model",)) -> Blob:
    folder.mkdir(exist_ok=True)
    return write_layer(folder, files, directories, lambda count: None)


def test_a_layer_holds_its_files_with_fixed_owner_mode_and_time(tmp_path: Path) -> None:
    shard = tmp_path / "shard"
    shard.write_bytes(b"w" * 1500)
    shard.chmod(0o600)
    blob = layer_of(tmp_path / "blobs", [LayerFile("/model/shard", shard), LayerFile("/model/note", b"n")])
    content = (tmp_path / "blobs" / blob.digest.removeprefix("sha256:")).read_bytes()
    with tarfile.open(fileobj=io.BytesIO(content)) as archive:
        found = [(m.name, m.size, m.mode, m.uid, m.gid, m.mtime) for m in archive]
        shard_member = archive.extractfile("model/shard")
        assert shard_member is not None
        assert shard_member.read() == b"w" * 1500
    assert found == [
        ("model", 0, 0o775, 2000, 0, 0),
        ("model/shard", 1500, 0o644, 2000, 0, 0),
        ("model/note", 1, 0o644, 2000, 0, 0),
    ]
    assert blob == Blob("sha256:" + hashlib.sha256(content).hexdigest(), len(content))


def test_times_and_modes_of_the_files_here_do_not_change_the_digest(tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    for path, mode, mtime in ((first, 0o600, 1), (second, 0o777, 2_000_000_000)):
        path.write_bytes(b"same")
        path.chmod(mode)
        os.utime(path, (mtime, mtime))
    blobs = [layer_of(tmp_path / f"{path.name}-blobs", [LayerFile("/model/x", path)]) for path in (first, second)]
    assert blobs[0] == blobs[1]


def test_progress_counts_every_byte_of_content_once(tmp_path: Path) -> None:
    counts: list[int] = []
    (tmp_path / "shard").write_bytes(bytes(9 << 20))
    write_layer(tmp_path, [LayerFile("/model/shard", tmp_path / "shard")], (), counts.append)
    assert counts == [8 << 20, 1 << 20]


def test_a_file_that_changed_since_it_was_recorded_is_refused_by_name(tmp_path: Path) -> None:
    shard = tmp_path / "shard"
    shard.write_bytes(b"rotten")
    recorded = hashlib.sha256(b"sound").hexdigest()
    with pytest.raises(UserError, match="changed since it was made") as caught:
        layer_of(tmp_path / "blobs", [LayerFile("/model/shard", shard, recorded)])
    assert caught.value.problems[0].where == str(shard)


def test_a_file_beyond_what_a_ustar_header_can_say_is_refused_before_it_is_read(tmp_path: Path) -> None:
    with (tmp_path / "huge").open("wb") as stream:
        stream.truncate(USTAR_LIMIT_BYTES + 1)  # sparse: takes no disk
    with pytest.raises(UserError, match=r"8\.0 GiB in one file"):
        layer_of(tmp_path / "blobs", [LayerFile("/model/huge", tmp_path / "huge")])
