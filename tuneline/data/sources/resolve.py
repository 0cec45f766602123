"""From what a config names (a file, a glob, a folder, a URL, a Hub dataset) to the files that are read."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Final, Literal
from urllib.parse import urlsplit

from tuneline.contracts.errors import Problem, UserError
from tuneline.data.sources.hub_reference import HUB_PREFIX, parse_hub
from tuneline.data.sources.local import FoundFile, find_local

Kind = Literal["csv", "tsv", "json", "jsonl", "parquet", "arrow", "hub"]
Compression = Literal["gz", "zst"]

KINDS: Final[Mapping[str, Kind]] = {
    ".csv": "csv",
    ".tsv": "tsv",
    ".json": "json",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".parquet": "parquet",
    ".arrow": "arrow",
}
COMPRESSIONS: Final[Mapping[str, Compression]] = {".gz": "gz", ".zst": "zst"}
WITHOUT_COMPRESSION: Final = ("parquet", "arrow")
"""Kinds that are compressed inside, and are read from several places of the file at once."""
PROTOCOLS: Final = ("http", "https", "s3", "gs")
HUGGING_FACE_METADATA: Final = frozenset({"dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json"})
"""Files that `datasets` writes beside its rows: in a folder they are no rows."""
SUFFIXES: Final = f"files that are read end in {', '.join(KINDS)}; all but .parquet and .arrow also as .gz or .zst"


@dataclass(frozen=True)
class SourceFile:
    """One file (or Hub dataset) that holds rows.

    `url` is a path as the user wrote it or the glob found it, or a URL; `size_bytes` is 0 where unknown; `tag` stands
    for a remote file's content, where its server tells one; the other fields are a Hub dataset's.
    """

    url: str
    kind: Kind
    compression: Compression | None
    size_bytes: int
    tag: str | None = None
    name: str = ""
    config: str | None = None
    revision: str | None = None
    split: str = "train"

    @property
    def is_remote(self) -> bool:
        """Whether the file is read through the network."""
        return protocol_of(self.url) is not None

    @property
    def label(self) -> str:
        """Name of the file in row ids and messages: the URL without credentials and query, which may be a signature."""
        return without_secrets(self.url)


def resolve(source: str, key: str) -> tuple[SourceFile, ...]:
    """Find the files of a source, sorted by path, and check all that can be checked without reading them.

    `key` is the config key that names the source, for messages.

    Raises:
        UserError: nothing there, nothing readable, an empty file, or a remote that does not answer.
    """
    where = f"{key} {without_secrets(source)}"
    if source.startswith(HUB_PREFIX):
        hub = parse_hub(source, where)
        return (SourceFile(source, "hub", None, 0, None, hub.name, hub.config, hub.revision, hub.split),)
    found = _find_remote(source, where) if protocol_of(source) else find_local(source, where, _in_folder_too)
    files = [_source_file(file, f"{key} {without_secrets(file.url)}") for file in found]
    problems = [file for file in files if isinstance(file, Problem)]
    if problems:
        raise UserError(problems)
    return tuple(file for file in files if isinstance(file, SourceFile))


def protocol_of(source: str) -> str | None:
    """Return the protocol of a URL, or None for a path."""
    protocol, separator, _ = source.partition("://")
    return protocol if separator else None


def without_secrets(source: str) -> str:
    """Return a URL without user, password and query; a path stays as it is."""
    if protocol_of(source) not in ("http", "https"):
        return source
    parts = urlsplit(source)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


def _find_remote(source: str, where: str) -> list[FoundFile]:
    if protocol_of(source) not in PROTOCOLS:
        known = ", ".join(f"{protocol}://" for protocol in PROTOCOLS)
        raise UserError.of(f"`{protocol_of(source)}://` is not read", where, f"name a path, or one of {known}")
    from tuneline.data.sources.remote import find_remote  # imports aiohttp, s3fs or gcsfs: not for local files

    return find_remote(source, where, _in_folder_too)


def _in_folder_too(name: str) -> bool:
    """Whether a file that a folder holds, rather than one that the user named, is read."""
    readable = isinstance(_format_of(name), tuple) and PurePosixPath(name).name not in HUGGING_FACE_METADATA
    return readable and not PurePosixPath(name).name.startswith((".", "_"))


def _source_file(found: FoundFile, where: str) -> SourceFile | Problem:
    is_http = protocol_of(found.url) in ("http", "https")
    form = _format_of(urlsplit(found.url).path if is_http else found.url)
    if isinstance(form, str):
        return Problem(form, where, SUFFIXES)
    if found.size_bytes == 0:
        return Problem("the file is empty", where, "name a file with at least one row")
    return SourceFile(found.url, *form, found.size_bytes or 0, found.tag)


def _format_of(name: str) -> tuple[Kind, Compression | None] | str:
    """Tell kind and compression from a file's name, or say why it is none that is read."""
    path = PurePosixPath(name.lower())
    compression = COMPRESSIONS.get(path.suffix)
    suffix = PurePosixPath(path.stem).suffix if compression else path.suffix
    kind = KINDS.get(suffix)
    if kind is None:
        return f"`{''.join(path.suffixes[-2:]) if compression else suffix}` is not a format that is read"
    if compression and kind in WITHOUT_COMPRESSION:
        return f"`{suffix}{path.suffix}` is not read: {kind} files are compressed inside, unpack it once"
    return kind, compression
