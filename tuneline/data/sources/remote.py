"""Files behind https://, s3:// and gs://, through fsspec; every failure is a sentence that says what to do."""

import io
import logging
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final, cast

from tuneline.contracts.errors import UserError
from tuneline.data.sources.local import FoundFile

DOOR_SECONDS: Final = 20.0
"""Longest wait for what is known of a file; the file systems' own retries would take minutes."""
SILENCE_SECONDS: Final = 60.0
"""Longest silence of a server in the middle of a file."""
READ_AHEAD_BYTES: Final = 4 * 2**20
CREDENTIALS: Final[Mapping[str, str]] = {
    "s3": "set AWS_PROFILE, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY; for a public bucket FSSPEC_S3_ANON=true",
    "gs": "set GOOGLE_APPLICATION_CREDENTIALS, or run `gcloud auth application-default login`",
    "http": "use a URL that needs no login (a signed one), or download the file and name its path",
}
TAGS: Final = ("md5Hash", "ETag", "etag", "Content-MD5", "Digest", "Last-Modified", "LastModified")
"""What stands for the content of a remote file, best first."""


def find_remote(source: str, where: str, is_read: Callable[[str], bool]) -> list[FoundFile]:
    """Return a file, a glob's matches, or the files under a prefix for which `is_read` holds, sorted by URL.

    Raises:
        UserError: nothing there, access refused, or no answer within `DOOR_SECONDS`.
    """
    protocol = source.partition("://")[0]
    with _told_apart(where, protocol):
        filesystem = _filesystem(protocol)
        if protocol in ("http", "https"):
            return [_remote_file(source, _ask(filesystem, filesystem._info, source))]
        if any(sign in source for sign in "*?["):
            matches = _ask(filesystem, filesystem._glob, source, detail=True)
            found = [info for info in matches.values() if info["type"] == "file"]
        else:
            info = _ask(filesystem, filesystem._info, source)
            if info["type"] == "file":
                return [_remote_file(source, info)]
            inside = _ask(filesystem, filesystem._find, source, detail=True)
            found = [info for info in inside.values() if is_read(info["name"])]
    if not found:
        raise UserError.of("no file is there that can be read", where, "check the bucket and the path")
    return sorted((_remote_file(f"{protocol}://{info['name']}", info) for info in found), key=lambda file: file.url)


def open_remote(url: str, label: str) -> io.BufferedReader:
    """Open a remote file to be read once from start to end; its failures are `UserError`s."""
    protocol = url.partition("://")[0]
    with _told_apart(label, protocol):
        # A block size of 0 is one plain GET: servers without ranges answer it too.
        options = {"block_size": 0} if protocol in ("http", "https") else {"block_size": READ_AHEAD_BYTES}
        handle = _filesystem(protocol).open(url, "rb", **options)
    return io.BufferedReader(_Told(handle, label, protocol), 2**20)


class _Told(io.RawIOBase):
    """A remote file whose failures say what broke, whichever library reads through it."""

    def __init__(self, handle: Any, label: str, protocol: str) -> None:
        self._handle, self._label, self._protocol, self._position = handle, label, protocol, 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        with _told_apart(f"{self._label} byte {self._position}", self._protocol):
            data = self._handle.read(len(buffer))
        buffer[: len(data)] = data
        self._position += len(data)
        return len(data)

    def close(self) -> None:
        if not self.closed:
            self._handle.close()
        super().close()


def _filesystem(protocol: str) -> Any:
    import fsspec

    # gcsfs logs a traceback for each request that fails; the UserError says it in one sentence.
    logging.getLogger("gcsfs").setLevel(logging.CRITICAL + 1)
    if protocol not in ("http", "https"):
        return fsspec.filesystem(protocol, use_listings_cache=False)
    import aiohttp

    # aiohttp would end a download after 5 minutes, and unpack a .gz that a server marks as encoded.
    timeout = aiohttp.ClientTimeout(total=None, sock_connect=DOOR_SECONDS, sock_read=SILENCE_SECONDS)
    client = {"timeout": timeout, "auto_decompress": False, "trust_env": True}
    return fsspec.filesystem(protocol, client_kwargs=client, headers={"Accept-Encoding": "identity"})


def _ask(filesystem: Any, question: Callable[..., Awaitable[Any]], *args: object, **options: object) -> Any:
    from fsspec.asyn import sync

    return sync(filesystem.loop, question, *args, timeout=DOOR_SECONDS, **options)


def _remote_file(url: str, info: Mapping[str, object]) -> FoundFile:
    tag = next((f"{info[name]}".strip('"') for name in TAGS if info.get(name)), None)
    return FoundFile(url, cast("int | None", info["size"]), tag)


@contextmanager
def _told_apart(where: str, protocol: str) -> Iterator[None]:
    """Turn what a file system raises (each has exceptions of its own) into a `UserError`."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        what, fix = _meaning(error, protocol)
        raise UserError.of(what, where, fix) from error


def _meaning(error: Exception, protocol: str) -> tuple[str, str]:
    root: BaseException = error
    while root.__cause__ is not None:
        root = root.__cause__
    status = getattr(root, "status", None) or getattr(root, "code", None)
    name = type(root).__name__
    login = CREDENTIALS["http" if protocol == "https" else protocol]
    if isinstance(root, ImportError):
        return f"reading {protocol}:// needs a package: {root}", "install it with pip"
    if "Credentials" in name or "AuthError" in name:
        return "no credentials were found", login
    if status in (401, 403) or isinstance(error, PermissionError) or str(root).startswith("Forbidden"):
        return "access is refused", login
    # For HTTP the FileNotFoundError stands for every failure, and its cause says which.
    absent = root if protocol in ("http", "https") else error
    if status == 404 or isinstance(absent, FileNotFoundError):
        return "no such file", "check the address; a bucket that is not public may need credentials: " + login
    if isinstance(error, TimeoutError) or isinstance(root, TimeoutError):
        return "no answer in time", f"check the network; without credentials: {login}"
    first_line = (str(root) or name).splitlines()[0]
    return f"it cannot be reached ({name}: {first_line})", "check the address and the network, or download it first"
