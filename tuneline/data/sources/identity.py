"""What stands for the content of a source: cheap to ask for, and different when the content is."""

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from tuneline.contracts.hashing import HashCache
from tuneline.data.sources.resolve import SourceFile, resolve, without_secrets


@dataclass(frozen=True)
class SourceIdentity:
    """Number and total size of a source's files (0 where unknown), and what stands for their content.

    `sha256_or_tag` is the sha256 of a single local file, the ETag of a remote one (or what its server has instead), the
    commit of a Hub dataset (offline, the revision as given). For several files it is the sha256 over the sorted lines
    `sha256_or_tag  path below the folder`.
    """

    files: int
    sha256_or_tag: str
    size_bytes: int


def source_identity(source: str, key: str, hashes: HashCache) -> SourceIdentity:
    """Identify what a source holds now; local files are read once, and again only after a change.

    Raises:
        UserError: as `resolve` does, and for a Hub dataset that is not there.
    """
    files = resolve(source, key)
    where = f"{key} {without_secrets(source)}"
    return SourceIdentity(
        files=len(files),
        sha256_or_tag=_together([file.label for file in files], [_content(file, where, hashes) for file in files]),
        size_bytes=sum(file.size_bytes for file in files),
    )


def _content(file: SourceFile, where: str, hashes: HashCache) -> str:
    if file.kind == "hub":
        from tuneline.data.sources.hub import hub_commit  # imports huggingface_hub

        return hub_commit(file, where) or file.revision or "main"
    if not file.is_remote:
        return hashes.sha256(Path(file.url))
    return file.tag or _streamed_sha256(file)


def _streamed_sha256(file: SourceFile) -> str:
    """Read a remote file of which its server tells neither tag nor date."""
    from tuneline.data.sources.blocks import BLOCK_BYTES, open_stored

    digest = hashlib.sha256()
    with open_stored(file) as stored:
        while block := stored.read(BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()


def _together(names: Sequence[str], contents: Sequence[str]) -> str:
    if len(contents) == 1:
        return contents[0]
    # Where the files lie is no part of what they hold: names are taken below the folder that they share.
    paths = [PurePosixPath(name) for name in names]
    folder = os.path.commonpath([path.parent for path in paths])
    lines = sorted(f"{content}  {path.relative_to(folder)}\n" for path, content in zip(paths, contents, strict=True))
    return hashlib.sha256("".join(lines).encode()).hexdigest()
