"""Hashes of files and folders, remembered by size and time of change so that 16 GB are not read again for nothing."""

import hashlib
import json
from collections.abc import Sequence
from fnmatch import fnmatch
from pathlib import Path

from tuneline.contracts.fingerprint import sha256_file
from tuneline.contracts.store import write_whole


class HashCache:
    """sha256 of files, kept in one JSON file between runs; an entry holds while size, mtime and inode do."""

    def __init__(self, path: Path) -> None:
        """Read what earlier runs remembered at `path`."""
        self._path = path
        known = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        self._known: dict[str, list[object]] = known

    def sha256(self, path: Path) -> str:
        """Return the file's hash, reading it only when it may have changed."""
        status = path.stat()
        stamp: list[object] = [status.st_size, status.st_mtime_ns, status.st_ino]
        entry = self._known.get(str(path.absolute()))
        if entry is not None and entry[:3] == stamp:
            return str(entry[3])
        digest = sha256_file(path)
        self._known[str(path.absolute())] = [*stamp, digest]
        self._path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(self._path, json.dumps(self._known, indent=0))
        return digest


def tree_sha256(folder: Path, hashes: HashCache, patterns: Sequence[str] = ("*",)) -> str:
    """Hash a folder's content: the sorted lines of `sha256  relative path` of its visible files.

    Args:
        folder: the folder.
        hashes: where hashes are remembered.
        patterns: only files whose name fits one of these count.
    """
    files = [
        path
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not path.name.startswith(".") and any(fnmatch(path.name, glob) for glob in patterns)
    ]
    lines = [f"{hashes.sha256(path)}  {path.relative_to(folder).as_posix()}\n" for path in files]
    return hashlib.sha256("".join(lines).encode()).hexdigest()
