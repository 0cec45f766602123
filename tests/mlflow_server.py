"""A real `mlflow server` on a free port of 127.0.0.1: SQLite, local artifacts, one worker, no jobs, no telemetry."""

import os
import shutil
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from tuneline.contracts.ports import free_port

START_LIMIT_SECONDS = 120
"""About 20 s on two idle cores, of which migrations take 9; busy ones take longer."""


@dataclass
class MlflowServer:
    """A server that can be killed and started again on the same port and files."""

    folder: Path
    port: int
    options: Sequence[str] = ()
    process: subprocess.Popen[bytes] | None = None

    @property
    def uri(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(self.port)]
        command += ["--backend-store-uri", f"sqlite:///{self.folder}/mlflow.db", "--workers", "1"]
        command += ["--artifacts-destination", str(self.folder / "artifacts"), *self.options]
        quiet = {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "DO_NOT_TRACK": "1"}
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("MLFLOW_")}
        with (self.folder / "server.log").open("ab") as log:
            self.process = subprocess.Popen(  # a session of its own, so that its workers end with it
                command, env=inherited | quiet, cwd=self.folder, stdout=log, stderr=log, start_new_session=True
            )
        self._wait_until_it_answers()

    def kill(self) -> None:
        if self.process:
            with suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait(timeout=10)
            self.process = None

    def _wait_until_it_answers(self) -> None:
        deadline = time.monotonic() + START_LIMIT_SECONDS
        while time.monotonic() < deadline:
            assert self.process and self.process.poll() is None, (self.folder / "server.log").read_text()
            with suppress(urllib.error.URLError, ConnectionError, TimeoutError):
                urllib.request.urlopen(f"{self.uri}/health", timeout=5).close()
                return
            time.sleep(0.2)
        self.kill()
        raise AssertionError((self.folder / "server.log").read_text())


@contextmanager
def mlflow_server(folder: Path, database: Path | None = None, options: Sequence[str] = ()) -> Iterator[MlflowServer]:
    """Run a server whose files are in `folder`; a migrated `database` to copy saves it the migrations."""
    folder.mkdir(parents=True, exist_ok=True)
    if database:
        shutil.copy(database, folder / "mlflow.db")
    server = MlflowServer(folder, free_port(), options)
    server.start()
    try:
        yield server
    finally:
        server.kill()
