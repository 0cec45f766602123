"""Sources behind a network, read from real servers on this machine; moto's server stands in for S3."""

import contextlib
import gzip
import hashlib
import io
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

import boto3
import pyarrow as pa
import pytest
from moto.server import ThreadedMotoServer
from pyarrow import parquet

from tuneline.contracts.errors import UserError
from tuneline.contracts.hashing import HashCache
from tuneline.data.rows import SourceRow, UnreadableRow
from tuneline.data.sources.identity import SourceIdentity, source_identity
from tuneline.data.sources.read import read_rows
from tuneline.data.sources.resolve import resolve

JSONL = b"".join(b'{"a": %d}\n' % index for index in range(200_000))
NOBODY = "http://127.0.0.1:9"
"""The discard port: nothing listens there."""


def read(source: str) -> list[SourceRow | UnreadableRow]:
    return [row for file in resolve(source, "data.train") for row in read_rows(file)]


def values(source: str) -> list[object]:
    return [row.values if isinstance(row, SourceRow) else row.why for row in read(source)]


def problem(source: str) -> str:
    with pytest.raises(UserError) as caught:
        read(source)
    return str(caught.value)


def table_bytes(rows: int) -> bytes:
    sink = io.BytesIO()
    parquet.write_table(pa.table({"a": list(range(rows))}), sink, row_group_size=rows // 3)
    return sink.getvalue()


# https


@dataclass
class Site:
    """Files of a web server by path, and how it behaves."""

    files: dict[str, bytes] = field(default_factory=dict)
    headers: dict[str, str] = field(default_factory=dict)
    status: int = 200
    with_ranges: bool = False
    send_bytes: int | None = None
    """End each connection after so many bytes of the body."""
    url: str = ""


@pytest.fixture
def site() -> Iterator[Site]:
    served = Site()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_HEAD(self) -> None:
            self._answer()

        def do_GET(self) -> None:
            body = self._answer()
            self.wfile.write(body[: served.send_bytes])
            self.close_connection = served.send_bytes is not None

        def _answer(self) -> bytes:
            body = served.files.get(urlsplit(self.path).path)
            status = served.status if body is not None else 404
            body = (body or b"") if status == 200 else b""
            asked = self.headers.get("Range")
            if served.with_ranges and asked and status == 200:
                first, _, last = asked.removeprefix("bytes=").partition("-")
                total, status = len(body), 206
                body = body[int(first) : int(last or total) + 1]
                served.headers["Content-Range"] = f"bytes {first}-{int(first) + len(body) - 1}/{total}"
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            if served.with_ranges:
                self.send_header("Accept-Ranges", "bytes")
            for name, value in served.headers.items():
                self.send_header(name, value)
            self.end_headers()
            return body

        def log_message(self, format: str, *args: object) -> None:
            """Keep the test's output clean."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    served.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield served
    server.shutdown()
    server.server_close()
    thread.join(timeout=10)


@pytest.mark.parametrize("with_ranges", [True, False])
def test_a_file_behind_http_is_read_with_ranges_and_without(site: Site, with_ranges: bool) -> None:
    site.with_ranges = with_ranges
    site.files = {"/x/rows.jsonl": JSONL * 3}  # more than the 5 MiB that a client asks for at once
    (file,) = resolve(f"{site.url}/x/rows.jsonl", "data.train")
    assert (file.size_bytes, file.kind) == (3 * len(JSONL), "jsonl")
    rows = list(read_rows(file))
    assert [row.values for row in rows if isinstance(row, SourceRow)] == [{"a": index} for index in range(200_000)] * 3
    assert rows[-1].row_id == f"{site.url}/x/rows.jsonl:600000"


@pytest.mark.parametrize("with_ranges", [True, False])
def test_a_parquet_file_behind_http_is_read_with_ranges_and_without(site: Site, with_ranges: bool) -> None:
    site.with_ranges = with_ranges
    site.files = {"/rows.parquet": table_bytes(3_000)}
    assert values(f"{site.url}/rows.parquet") == [{"a": index} for index in range(3_000)]


@pytest.mark.parametrize("headers", [{}, {"Content-Encoding": "gzip"}])
def test_a_gz_file_behind_http_is_unpacked_once(site: Site, headers: dict[str, str]) -> None:
    site.files, site.headers = {"/rows.jsonl.gz": gzip.compress(b'{"a": 1}\n')}, headers
    assert values(f"{site.url}/rows.jsonl.gz") == [{"a": 1}]


def test_the_signature_in_a_url_is_used_and_shown_to_nobody(site: Site) -> None:
    site.files = {"/rows.csv": b"a,b\n1,2\n3\n"}
    (good, bad) = read(f"{site.url}/rows.csv?signature=hush")
    assert (good.row_id, bad.row_id) == (f"{site.url}/rows.csv:2", f"{site.url}/rows.csv:3")
    site.files = {}
    assert "hush" not in problem(f"{site.url}/rows.csv?signature=hush")
    assert "hush" not in problem(f"http://user:hush@{urlsplit(site.url).netloc}/rows.csv")


@pytest.mark.parametrize(("status", "what"), [(404, "no such file"), (403, "access is refused"), (401, "access is")])
def test_an_answer_that_is_no_file_is_one_sentence(site: Site, status: int, what: str) -> None:
    site.files, site.status = {"/rows.csv": b"a\n1\n"}, status
    assert problem(f"{site.url}/rows.csv").startswith(f"data.train {site.url}/rows.csv: {what}")


def test_an_empty_file_behind_http_is_told_at_the_door(site: Site) -> None:
    site.files = {"/rows.csv": b""}
    assert "the file is empty" in problem(f"{site.url}/rows.csv")


def test_a_server_that_is_not_there_is_one_sentence() -> None:
    assert "it cannot be reached (" in problem(f"{NOBODY}/rows.csv")


def test_a_connection_that_breaks_is_an_error_and_no_short_file(site: Site) -> None:
    site.files, site.send_bytes = {"/rows.jsonl": JSONL}, len(JSONL) // 2
    message = problem(f"{site.url}/rows.jsonl")
    assert f"{site.url}/rows.jsonl byte " in message
    assert "it cannot be reached (" in message


def test_a_packed_file_whose_connection_breaks_is_an_error_and_not_torn(site: Site) -> None:
    packed = gzip.compress(JSONL)
    site.files, site.send_bytes = {"/rows.jsonl.gz": packed}, len(packed) // 2
    assert "it cannot be reached (" in problem(f"{site.url}/rows.jsonl.gz")


@pytest.mark.parametrize(
    ("headers", "tag"),
    [
        ({"ETag": '"v1"', "Last-Modified": "Mon, 02 Nov 2026 10:00:00 GMT"}, "v1"),
        ({"Last-Modified": "Mon, 02 Nov 2026 10:00:00 GMT"}, "Mon, 02 Nov 2026 10:00:00 GMT"),
        ({}, hashlib.sha256(b"a\n1\n").hexdigest()),
    ],
)
def test_a_file_behind_http_is_identified_by_what_its_server_tells_or_by_its_content(
    site: Site, tmp_path: Path, headers: dict[str, str], tag: str
) -> None:
    site.files, site.headers = {"/rows.csv": b"a\n1\n"}, headers
    found = source_identity(f"{site.url}/rows.csv", "data.train", HashCache(tmp_path / "h"))
    assert found == SourceIdentity(1, tag, 4)


# s3


@pytest.fixture(scope="module")
def moto_s3() -> Iterator[str]:
    """A bucket `rows` on moto's server, reached through the variables that every AWS client reads."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    host, port = server.get_host_and_port()
    endpoint = f"http://{host}:{port}"
    with pytest.MonkeyPatch.context() as patch:
        _aws_variables(patch, endpoint)
        client = boto3.client("s3", endpoint_url=endpoint)
        client.create_bucket(Bucket="rows")
        for key, body in {
            "x/a.jsonl": b'{"a": 1}\n{"a": 2}\n',
            "x/deep/b.csv.gz": gzip.compress(b"a\n3\n"),
            "x/c.parquet": table_bytes(300),
            "x/notes.txt": b"text",
            "x/.hidden.csv": b"a\n1\n",
            "large.jsonl": JSONL * 5,
            "empty.csv": b"",
        }.items():
            client.put_object(Bucket="rows", Key=key, Body=body)
        yield endpoint
    server.stop()


def _aws_variables(patch: pytest.MonkeyPatch, endpoint: str) -> None:
    patch.setenv("AWS_ENDPOINT_URL", endpoint)
    patch.setenv("AWS_ACCESS_KEY_ID", "testing")
    patch.setenv("AWS_SECRET_ACCESS_KEY", "testing")
    patch.setenv("AWS_DEFAULT_REGION", "us-east-1")


@pytest.mark.usefixtures("moto_s3")
@pytest.mark.parametrize(
    ("source", "names"),
    [
        ("s3://rows/x/a.jsonl", ["s3://rows/x/a.jsonl"]),
        ("s3://rows/x/*.parquet", ["s3://rows/x/c.parquet"]),
        ("s3://rows/x", ["s3://rows/x/a.jsonl", "s3://rows/x/c.parquet", "s3://rows/x/deep/b.csv.gz"]),
        ("s3://rows/x/", ["s3://rows/x/a.jsonl", "s3://rows/x/c.parquet", "s3://rows/x/deep/b.csv.gz"]),
    ],
)
def test_keys_globs_and_prefixes_on_moto_s3_are_found(source: str, names: list[str]) -> None:
    assert [file.url for file in resolve(source, "data.train")] == names


@pytest.mark.usefixtures("moto_s3")
def test_rows_on_moto_s3_are_read() -> None:
    rows = read("s3://rows/x/")
    assert [row.row_id for row in rows[:3]] == [
        "s3://rows/x/a.jsonl:1",
        "s3://rows/x/a.jsonl:2",
        "s3://rows/x/c.parquet#0",
    ]
    assert values("s3://rows/x/") == [{"a": 1}, {"a": 2}, *({"a": index} for index in range(300)), {"a": "3"}]


@pytest.mark.usefixtures("moto_s3")
def test_a_file_of_many_requests_on_moto_s3_is_read_in_order() -> None:
    assert values("s3://rows/large.jsonl") == [{"a": index} for index in range(200_000)] * 5


@pytest.mark.usefixtures("moto_s3")
@pytest.mark.parametrize(
    ("source", "what"),
    [
        ("s3://rows/absent.csv", "no such file"),
        ("s3://nowhere/rows.csv", "no such file"),
        ("s3://rows/x/*.tsv", "no file is there that can be read"),
        ("s3://rows/empty.csv", "the file is empty"),
        ("s3://rows/x/notes.txt", "`.txt` is not a format that is read"),
    ],
)
def test_what_is_not_on_moto_s3_is_one_sentence(source: str, what: str) -> None:
    assert problem(source).startswith(f"data.train {source}: {what}")


def test_a_file_on_moto_s3_is_identified_by_its_etag(moto_s3: str, tmp_path: Path) -> None:
    identity = source_identity("s3://rows/x/a.jsonl", "data.train", HashCache(tmp_path / "h"))
    assert identity == SourceIdentity(1, hashlib.md5(b'{"a": 1}\n{"a": 2}\n', usedforsecurity=False).hexdigest(), 18)


def test_the_identity_on_moto_s3_follows_new_and_changed_files(moto_s3: str, tmp_path: Path) -> None:
    client = boto3.client("s3", endpoint_url=moto_s3)
    tags = []
    for key, body in (("y/a.csv", b"a\n1\n"), ("y/b.csv", b"a\n2\n"), ("y/b.csv", b"a\n3\n")):
        client.put_object(Bucket="rows", Key=key, Body=body)
        for source in ("s3://rows/y", f"s3://rows/{key}", "s3://rows/y/*.csv"):
            tags.append(source_identity(source, "data.train", HashCache(tmp_path / "h")).sha256_or_tag)
    prefix, key_tags, pattern = tags[::3], tags[1::3], tags[2::3]
    assert prefix == pattern
    assert len(set(prefix)) == len(set(key_tags)) == 3


# What is far away and does not answer


@pytest.fixture
def fresh_file_systems() -> Iterator[None]:
    """File systems that read the environment of this test: fsspec keeps those of earlier ones."""
    import fsspec
    from gcsfs import GCSFileSystem
    from s3fs import S3FileSystem

    for kind in (GCSFileSystem, S3FileSystem):
        kind.clear_instance_cache()
    yield
    for kind in (GCSFileSystem, S3FileSystem):
        kind.clear_instance_cache()
    with contextlib.suppress(ImportError):
        fsspec.get_filesystem_class("gs").clear_instance_cache()


@pytest.mark.usefixtures("fresh_file_systems")
def test_s3_without_credentials_says_which_variables_to_set(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE", "AWS_ENDPOINT_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    message = problem("s3://rows/a.csv")
    assert message.startswith("data.train s3://rows/a.csv: no credentials were found")
    assert "set AWS_PROFILE, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY" in message


@pytest.mark.usefixtures("fresh_file_systems")
def test_a_public_bucket_on_moto_s3_is_read_without_credentials(moto_s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    from fsspec.config import conf, set_conf_env

    monkeypatch.setenv("FSSPEC_S3_ANON", "true")
    set_conf_env(conf)
    try:
        boto3.client(
            "s3", endpoint_url=moto_s3, aws_access_key_id="testing", aws_secret_access_key="testing"
        ).put_object_acl(Bucket="rows", Key="x/a.jsonl", ACL="public-read")
        assert values("s3://rows/x/a.jsonl") == [{"a": 1}, {"a": 2}]
    finally:
        conf.pop("s3", None)


@pytest.mark.usefixtures("fresh_file_systems")
def test_an_s3_that_does_not_answer_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    _aws_variables(monkeypatch, NOBODY)
    assert "data.train s3://rows/a.csv: it cannot be reached (" in problem("s3://rows/a.csv")


@pytest.fixture
def gs_at(monkeypatch: pytest.MonkeyPatch, fresh_file_systems: None) -> pytest.MonkeyPatch:
    monkeypatch.setenv("NO_GCE_CHECK", "true")
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", "")
    monkeypatch.setattr("tuneline.data.sources.remote.DOOR_SECONDS", 2.0)
    return monkeypatch


def test_a_gs_that_does_not_answer_is_one_sentence_within_seconds(
    gs_at: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    gs_at.setenv("STORAGE_EMULATOR_HOST", NOBODY)
    message = problem("gs://rows/a.csv")
    assert message.startswith("data.train gs://rows/a.csv: no answer in time")
    assert "set GOOGLE_APPLICATION_CREDENTIALS" in message
    assert [record.name for record in caplog.records if record.exc_info] == []


@pytest.mark.parametrize("status", [401, 403])
def test_a_gs_that_wants_a_login_says_how_to_log_in(
    gs_at: pytest.MonkeyPatch, site: Site, status: int, caplog: pytest.LogCaptureFixture
) -> None:
    site.files, site.status = {"/storage/v1/b/rows/o/a.csv": b"{}", "/storage/v1/b/rows/o": b"{}"}, status
    gs_at.setenv("STORAGE_EMULATOR_HOST", site.url)
    message = problem("gs://rows/a.csv")
    assert message.startswith("data.train gs://rows/a.csv: access is refused")
    assert "set GOOGLE_APPLICATION_CREDENTIALS" in message
    assert [record.name for record in caplog.records if record.exc_info] == []


# The Hub, offline as all tests are


@pytest.fixture
def hub_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path)
    return tmp_path


COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def cached_copy(hub_cache: Path) -> None:
    """What `datasets` keeps of `owner/name` after it was read once: an Arrow file and what is known of it."""
    from datasets import DatasetInfo, SplitDict, SplitInfo
    from datasets.arrow_writer import ArrowWriter

    folder = hub_cache / "owner___name" / "default" / "0.0.0" / COMMIT
    folder.mkdir(parents=True)
    with ArrowWriter(path=str(folder / "name-train.arrow")) as writer:
        for index in range(2_500):
            writer.write({"a": index})
        rows, size_bytes = writer.finalize()
    splits = SplitDict({"train": SplitInfo("train", size_bytes, rows, dataset_name="name")})
    DatasetInfo(
        builder_name="json", dataset_name="name", config_name="default", version="0.0.0", splits=splits
    ).write_to_directory(str(folder))


@pytest.mark.usefixtures("hub_cache")
def test_a_hub_dataset_without_network_or_copy_is_one_sentence() -> None:
    message = problem("hub:owner/name@v1")
    assert message.startswith("hub:owner/name@v1: the Hub dataset cannot be had: ")
    assert "or download it and name the file" in message


@pytest.mark.usefixtures("cached_copy")
@pytest.mark.parametrize("source", ["hub:owner/name", f"hub:owner/name@{COMMIT}#train"])
def test_a_hub_dataset_is_read_from_its_cached_copy_without_network(source: str) -> None:
    rows = read(source)
    assert [row.row_id for row in rows] == [f"{source}#{index}" for index in range(2_500)]
    assert values(source) == [{"a": index} for index in range(2_500)]


@pytest.mark.usefixtures("cached_copy")
def test_a_split_that_a_hub_dataset_lacks_names_those_that_it_has() -> None:
    assert "Unknown split \"test\". Should be one of ['train']" in problem("hub:owner/name#test")


@pytest.mark.usefixtures("cached_copy")
def test_a_cached_copy_is_not_taken_for_a_revision_that_it_may_not_be() -> None:
    message = problem("hub:owner/name@v1")
    assert f"the cached copy is of commit {COMMIT}, which may not be v1" in message
    assert f"name @{COMMIT}, or go online once" in message
