"""The Docker command line: asked, never imported, and its refusals put in words."""

import json
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tuneline.contracts.errors import ServiceUnavailable, UserError

Progress = Callable[[int, int, str], None]
"""Called with (bytes or seconds done, their expected total, what is being done)."""

QUICK_SECONDS = 120.0
"""Bound of a command that moves no image data; a loaded engine on two cores answers these within seconds."""


class DockerError(UserError):
    """A docker command failed; the problem holds the engine's own last words."""


@dataclass(frozen=True)
class Engine:
    """What answers behind the docker command."""

    version: str
    containerd_store: bool
    """The containerd image store names an image by its manifest, not its config, and wants all layers in an archive."""


def ignore_progress(done: int, total: int, what: str) -> None:
    """Take a progress report and do nothing with it."""


def docker(arguments: Sequence[str], timeout_seconds: float = QUICK_SECONDS) -> str:
    """Run a docker command and return what it printed, without surrounding blanks.

    The command runs in a session of its own: a cancel that signals our whole process group must not end the very
    command that removes a container.

    Raises:
        ServiceUnavailable: there is no docker command, or no engine answers it.
        DockerError: the engine refused, or took longer than `timeout_seconds`.
    """
    command = ["docker", *arguments]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=timeout_seconds, check=False, start_new_session=True
        )
    except FileNotFoundError as error:
        raise _no_command() from error
    except subprocess.TimeoutExpired as error:
        raise DockerError.of(f"no end after {timeout_seconds:.0f} s", " ".join(command[:3])) from error
    if done.returncode != 0:
        raise docker_refused(arguments, done.stderr)
    return done.stdout.strip()


def docker_refused(arguments: Sequence[str], stderr: str) -> UserError:
    """Make the error of a docker command that failed, from what it wrote."""
    words = stderr.strip() or "no reason given"
    if "Cannot connect to the Docker daemon" in words or "permission denied while trying to connect" in words:
        return ServiceUnavailable.of(
            f"Docker not reachable: {words.splitlines()[-1]}",
            fix="start Docker Engine, and see that `docker info` works for this user (group docker, or DOCKER_HOST)",
        )
    return DockerError.of(words, where=" ".join(["docker", *arguments[:2]]))


def require_engine() -> Engine:
    """Ask the engine for its version and kind of image store.

    Raises:
        ServiceUnavailable: Docker is not reachable.
    """
    info = json.loads(docker(["info", "--format", "{{json .}}"]))
    if not info.get("ServerVersion"):  # `docker info` succeeds without a server and lists the errors instead
        raise docker_refused(["info"], "\n".join(info.get("ServerErrors") or ["Cannot connect to the Docker daemon"]))
    status = info.get("DriverStatus") or []
    return Engine(info["ServerVersion"], containerd_store=any("containerd.snapshotter" in str(row) for row in status))


def _no_command() -> ServiceUnavailable:
    return ServiceUnavailable.of(
        "Docker not reachable: there is no `docker` command",
        fix="install Docker Engine, or skip packaging on this machine",
    )
