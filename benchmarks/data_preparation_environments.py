"""The peers of the benchmarks: pinned versions, each in a virtual environment of its own."""

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

DEFAULT_FOLDER = Path.home() / ".cache" / "tuneline-bench"
TORCH = "torch==2.13.0"
MARK = ".installed"
"""File that an environment gets once pip has ended well, so that half of one is made again."""


@dataclass(frozen=True)
class Peer:
    """A tool that is measured beside ours."""

    name: str
    version: str
    driver: str
    """Module that drives it."""
    beside: tuple[str, ...] = (TORCH,)
    """Requirements that are installed with it."""

    @property
    def label(self) -> str:
        """Name and version, as in a requirement without its `==`."""
        return f"{self.name} {self.version}"


PEERS = {
    peer.name: peer
    for peer in (
        Peer("trl", "1.16.0", "benchmarks.peers.run_trl", (TORCH, "peft==0.21.2")),
        # Of its own torchvision and torchaudio pip finds CUDA builds only, which a CPU build of torch does not load.
        Peer("llamafactory", "0.9.5", "benchmarks.peers.run_llamafactory", ("torch==2.14.1",)),
        Peer("axolotl", "0.19.0", "benchmarks.peers.run_axolotl"),
    )
}


class NotInstallable(Exception):
    """A peer's environment cannot be made here; the message is pip's own last line."""


def interpreter_of(peer: Peer, folder: Path = DEFAULT_FOLDER) -> Path:
    """Return the interpreter of a peer's environment, making the environment on first use.

    Raises:
        NotInstallable: pip failed.
    """
    environment = folder / f"{peer.name}-{peer.version}"
    interpreter = environment / "bin" / "python"
    if not (environment / MARK).exists():
        print(f"Installing {peer.label} at {environment}, once, some minutes ...", file=sys.stderr)
        subprocess.run([sys.executable, "-m", "venv", "--clear", environment], check=True)
        install = [interpreter, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        ended = subprocess.run(
            [*install, *peer.beside, f"{peer.name}=={peer.version}"], capture_output=True, text=True, check=False
        )
        if ended.returncode != 0:
            raise NotInstallable((ended.stderr.strip() or "pip said nothing").splitlines()[-1])
        (environment / MARK).touch()
    return interpreter
