"""A server container that is always removed: on success, failure, time-out, Ctrl-C and a flow's cancellation."""

import os
import secrets
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

from tuneline.contracts.errors import UserError
from tuneline.serving.engine import DockerError, docker
from tuneline.serving.server_settings import HOME_DIR, PORT

LABEL: Final = "io.tuneline.verify"
"""Label of the containers that verify starts; its value is the image's reference.

`io.tuneline.run` would not do: a container inherits it from its image, one in production too.
"""
HARDENING: Final = (
    "--read-only",
    "--tmpfs=/tmp:exec,mode=1777",
    f"--tmpfs={HOME_DIR}:exec,uid=2000,mode=0775",
    "--cap-drop=ALL",
    "--security-opt=no-new-privileges",
)
"""What the deployment files grant the server and no more, so that the smoke test proves that it suffices."""
LOG_LINES: Final = 30


@dataclass(frozen=True)
class ServerContainer:
    """A started container: its name, and the port of 127.0.0.1 on which its server will answer (0: it has ended)."""

    name: str
    port: int

    def exit_status(self) -> int | None:
        """Status with which the server ended, or None while it runs."""
        running, status = docker(["inspect", "--format", "{{.State.Running}} {{.State.ExitCode}}", self.name]).split()
        return None if running == "true" else int(status)

    def last_log_lines(self) -> str:
        """Give the last lines that the server wrote to either stream."""
        command = ["docker", "logs", "--tail", str(LOG_LINES), self.name]
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
        return done.stdout.strip()

    def terminate(self) -> None:
        """Send SIGTERM, as a deployment does, and return at once."""
        docker(["kill", "--signal", "TERM", self.name])

    def wait(self, timeout_seconds: float) -> int:
        """Wait for the server's end and return its exit status.

        Raises:
            DockerError: it still runs after `timeout_seconds`.
        """
        return int(docker(["wait", self.name], timeout_seconds))


@contextmanager
def running_server(reference: str, *, port: int = 0, gpus: bool = False) -> Iterator[ServerContainer]:
    """Start a server container and remove it at the end, whatever the end is.

    Containers of the same image that an earlier, killed verify left behind are removed first.

    Args:
        reference: the image's tag.
        port: port of 127.0.0.1 to publish on; 0 lets the engine take a free one.
        gpus: give the container the machine's GPUs; without, the CPU backend's threads and cache are bounded.

    Raises:
        UserError: the port is in use, or the engine cannot start the container.
    """
    remove_leftovers(reference)
    # Named before it is started: a cancel that arrives during `docker run` must still find what to remove.
    name = f"tuneline-verify-{secrets.token_hex(6)}"
    options = ["--name", name, "--label", f"{LABEL}={reference}", "--shm-size", "1g", *HARDENING]
    publish = ["--publish", f"127.0.0.1:{port or ''}:{PORT}"]
    try:
        _start([*options, *publish, *device_options(gpus), reference], port)
        yield ServerContainer(name, _published_port(name))
    finally:
        _remove(name)


def remove_leftovers(reference: str) -> list[str]:
    """Remove containers that an earlier verify of this image left; returns their ids."""
    found = docker(["ps", "--all", "--quiet", "--filter", f"label={LABEL}={reference}"]).split()
    for container in found:
        _remove(container)
    return found


def device_options(gpus: bool) -> list[str]:
    """Give a container the machine's GPUs; without, bound what the CPU backend takes."""
    if gpus:
        return ["--gpus", "all"]
    return [
        f"--env=OMP_NUM_THREADS={len(os.sched_getaffinity(0))}",
        # Threads that sleep while they wait: on two cores with other work, spinning ones made 150 small matrix products
        # a second, sleeping ones 640.
        "--env=OMP_WAIT_POLICY=passive",
        "--env=VLLM_CPU_OMP_THREADS_BIND=nobind",  # bound to cores, two servers side by side would share the first one
        "--env=VLLM_CPU_KVCACHE_SPACE=1",  # GiB; unset, vLLM takes most of the machine's memory
    ]


def _start(arguments: list[str], port: int) -> None:
    try:
        docker(["run", "--detach", *arguments])
    except DockerError as error:
        words = str(error)
        if "already allocated" not in words and "already in use" not in words:
            raise
        raise UserError.of(
            f"port {port} of 127.0.0.1 is in use",
            "TUNELINE_SERVE_PORT",
            "end what uses it, choose another, or set 0 to take a free one",
        ) from error


def _published_port(name: str) -> int:
    try:
        return int(docker(["port", name, f"{PORT}/tcp"]).splitlines()[0].rpartition(":")[2])
    except DockerError as error:
        if "No public port" not in str(error):
            raise
        return 0  # it has ended: `exit_status` will say so


def _remove(name: str) -> None:
    try:
        docker(["rm", "--force", "--volumes", name])
    except DockerError as error:
        if "No such container" not in str(error):
            raise
