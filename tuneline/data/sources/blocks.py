"""The bytes of a source file: as stored, or unpacked in blocks with what lies before a tear."""

import codecs
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, Final

from tuneline.contracts.errors import UserError
from tuneline.data.sources.resolve import SourceFile

BLOCK_BYTES: Final = 2**18
"""Read at a time: a block and its lines stay in the processor's cache, 8 % faster for CSV than 1 MiB."""
ROW_BYTES_LIMIT: Final = 64 * 2**20
"""Longest row: six times a 10 MB string. A longer one is a file of another format, or one that has lost its shape."""
CODECS: Final = {"gz": "gzip", "zst": "zstd"}


def open_stored(file: SourceFile) -> BinaryIO:
    """Open a file's bytes as they are stored, to be read once from start to end.

    Raises:
        UserError: it cannot be opened.
    """
    if file.is_remote:
        from tuneline.data.sources.remote import open_remote

        return open_remote(file.url, file.label)
    try:
        return Path(file.url).open("rb", buffering=BLOCK_BYTES)
    except OSError as error:
        raise UserError.of(f"it cannot be opened: {error.strerror}", file.label, "check the path") from error


@contextmanager
def on_disk(file: SourceFile) -> Iterator[str]:
    """Give a path for readers that jump about in a file: a remote one is brought to a temporary file first."""
    if not file.is_remote:
        yield file.url
        return
    with tempfile.NamedTemporaryFile(prefix="tuneline-") as copy:
        with open_stored(file) as stored:
            shutil.copyfileobj(stored, copy, BLOCK_BYTES)
        copy.flush()
        yield copy.name


class TextBlocks:
    """The unpacked bytes of a text file in blocks of about `BLOCK_BYTES`, without a byte order mark; iterate once.

    A compressed file that breaks off, or is damaged, gives all that lies before; then `torn` says what is wrong.

    Raises (while iterating):
        UserError: nothing in it, UTF-16, not compressed as its name says, or a connection that breaks.
    """

    def __init__(self, file: SourceFile) -> None:
        """Take the file; it is opened when the iteration starts."""
        self._file = file
        self.label = file.label
        self.torn: str | None = None
        self.lines = 0
        """Line ends in the blocks so far."""

    def __iter__(self) -> Iterator[bytes]:
        """Yield the blocks; one is empty only where a byte order mark was all of it."""
        blocks = self._unpacked()
        first = next(blocks, b"")
        if self.torn and not first:
            raise UserError.of(f"it cannot be unpacked: {self.torn}", self.label, "write the file again")
        _check_text(first, self.label)
        yield first.removeprefix(codecs.BOM_UTF8)
        self.lines += first.count(b"\n")
        for block in blocks:
            yield block
            self.lines += block.count(b"\n")

    def _unpacked(self) -> Iterator[bytes]:
        position = 0
        with open_stored(self._file) as stored:
            stream = self._unpacker(stored)
            try:
                while block := stream.read(BLOCK_BYTES):
                    yield block
                    position += len(block)
                return
            except OSError as error:
                self.torn = str(error)
        if rest := self._before_tear(position):
            yield rest

    def _before_tear(self, position: int) -> bytes:
        """Read byte by byte up to the tear: a longer read that crosses it gives nothing."""
        rest = bytearray()
        with open_stored(self._file) as stored:
            stream = self._unpacker(stored)
            while position > 0:
                position -= len(stream.read(min(position, BLOCK_BYTES)))
            try:
                while byte := stream.read(1):
                    rest += byte
            except OSError:
                return bytes(rest)
        return bytes(rest)

    def _unpacker(self, stored: BinaryIO) -> Any:
        if self._file.compression is None:
            return stored
        import pyarrow

        return pyarrow.CompressedInputStream(stored, CODECS[self._file.compression])


def whole_lines(blocks: TextBlocks) -> Iterator[bytes]:
    """Cut blocks after their last line end; the last block may lack one, unless the file is torn in that line.

    Raises:
        UserError: a line of more than `ROW_BYTES_LIMIT`.
    """
    rest: list[bytes] = []
    rest_bytes = 0
    for block in blocks:
        cut = block.rfind(b"\n") + 1
        if cut:
            yield b"".join((*rest, block[:cut]))
            rest, rest_bytes = [], 0
        rest.append(block[cut:])
        rest_bytes += len(block) - cut
        if rest_bytes > ROW_BYTES_LIMIT:
            what = f"the line is longer than {ROW_BYTES_LIMIT >> 20} MiB"
            where = f"{blocks.label}:{blocks.lines + block.count(bytes([10])) + 1}"
            raise UserError.of(what, where, "one row a line; an array of objects is read from a .json file")
    if rest_bytes and not blocks.torn:
        yield b"".join(rest)


def _check_text(first: bytes, label: str) -> None:
    if not first:
        raise UserError.of("the file is empty", label, "name a file with at least one row")
    marked = first.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    # Text of one byte a character in UTF-16: every other byte is 0.
    if marked or first[:4:2] == b"\0\0" or first[1:4:2] == b"\0\0":
        raise UserError.of("it looks like UTF-16", label, f"save as UTF-8: `iconv -f UTF-16 -t UTF-8 {label}`")
