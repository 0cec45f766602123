"""Paths, globs and folders to the files that they stand for."""

import difflib
import os
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tuneline.contracts.errors import UserError


@dataclass(frozen=True)
class FoundFile:
    """What is known of a file without reading it.

    `tag` changes with a remote file's content; it is None where the server has none, and for files of this machine.
    """

    url: str
    size_bytes: int | None
    tag: str | None = None


def find_local(source: str, where: str, is_read: Callable[[str], bool]) -> list[FoundFile]:
    """Find a file, a glob's matches, or all files in a folder for which `is_read` holds, sorted by path.

    Raises:
        UserError: no such file, a glob without match, a folder without such a file, or no permission.
    """
    path = Path(source)
    if path.is_file():
        found = [source]
    elif path.is_dir():
        found = _in_folder(path, where, is_read)
    elif any(sign in source for sign in "*?["):
        found = _matches(path, where)
    else:
        raise _absent(path, where)
    for name in found:
        if not os.access(name, os.R_OK):
            raise UserError.of("no permission to read it", where, f"`ls -l {name}` shows who may")
    return [FoundFile(name, Path(name).stat().st_size) for name in found]


def _matches(pattern: Path, where: str) -> list[str]:
    parts = pattern.parts
    first = next(index for index, part in enumerate(parts) if any(sign in part for sign in "*?["))
    root = Path(*parts[:first])
    found = [path for path in root.glob(str(Path(*parts[first:]))) if path.is_file() and not _hidden(path, root)]
    if not found:
        raise UserError.of("no file matches", where, f"looked from {Path.cwd()}; {_content(root)}")
    return sorted(map(str, found))


def _in_folder(folder: Path, where: str, is_read: Callable[[str], bool]) -> list[str]:
    visible = [path for path in folder.rglob("*") if path.is_file() and not _hidden(path, folder)]
    found = sorted(str(path) for path in visible if is_read(str(path)))
    if not found:
        raise UserError.of("no file in the folder can be read", where, _content(folder))
    return found


def _hidden(path: Path, root: Path) -> bool:
    return any(part.startswith(".") for part in path.relative_to(root).parts)


def _absent(path: Path, where: str) -> UserError:
    if path.exists():
        return UserError.of("neither a file nor a folder", where, "name a file, a folder or a glob")
    folder = next(parent for parent in path.absolute().parents if parent.is_dir())
    missing = path.absolute().relative_to(folder).parts[0]
    names = sorted(entry.name for entry in folder.iterdir())
    close = difflib.get_close_matches(missing, names, n=1)
    hint = f"; did you mean `{close[0]}`?" if close else f"; {_content(folder)}"
    return UserError.of("no such file", where, f"looked from {Path.cwd()}{hint}")


def _content(folder: Path) -> str:
    """Say in one clause what is in a folder: its files by suffix, the most frequent first."""
    if not folder.is_dir():
        return f"there is no folder {folder}"
    kinds = Counter(path.suffix or "no suffix" for path in folder.rglob("*") if path.is_file())
    listed = ", ".join(f"{count} {suffix}" for suffix, count in kinds.most_common(5))
    return f"{folder} holds {listed or 'no file'}"
