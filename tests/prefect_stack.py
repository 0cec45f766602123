"""A Prefect server and workers of a test's own, on 127.0.0.1, ended by process id."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx
import psutil

from tuneline.contracts.ports import free_port

START_SECONDS = 90.0
COMMAND_SECONDS = 900.0
RETRIES = 10
QUIET: Mapping[str, str] = {
    "DO_NOT_TRACK": "1",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "PREFECT_SERVER_UI_ENABLED": "false",
    "PREFECT_SERVER_LOGGING_LEVEL": "WARNING",
    "PREFECT_WORKER_QUERY_SECONDS": "1",
    "NO_COLOR": "1",
}


class PrefectStack:
    """Context manager: a server on entry; workers, deployments and runs by method; all ended on exit.

    Args:
        work_dir: gets PREFECT_HOME and the logs.
        environment: environment of the server and the workers, added to this process's.
    """

    def __init__(self, work_dir: Path, environment: Mapping[str, str] | None = None) -> None:
        port = free_port()
        self.api_url = f"http://127.0.0.1:{port}/api"
        self.work_dir = work_dir
        self._port = port
        self._processes: list[subprocess.Popen[bytes]] = []
        self._environment = {
            **os.environ,
            **QUIET,
            "PREFECT_HOME": str(work_dir / "prefect"),
            "PREFECT_API_URL": self.api_url,
            **(environment or {}),
        }
        self.client = httpx.Client(base_url=self.api_url, timeout=30)

    def __enter__(self) -> Self:
        self.work_dir.mkdir(parents=True, exist_ok=True)
        try:
            self._start("server", "server", "start", "--host", "127.0.0.1", "--port", str(self._port))
            self._await(self._healthy, "the server does not answer")
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.stop()

    def start_worker(self, pool: str) -> subprocess.Popen[bytes]:
        """Start a process worker and wait until it is online; the pool is made when absent."""
        known = self._online_workers(pool)
        worker = self._start(f"worker-{pool}", "worker", "start", "--pool", pool, "--type", "process")
        self._await(lambda: self._online_workers(pool) > known, "the worker is not online")
        return worker

    def command(self, *arguments: str, cwd: Path | None = None, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run a `prefect` command against this server."""
        return subprocess.run(
            [sys.executable, "-m", "prefect", *arguments],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            env=self._environment,
            cwd=cwd,
            check=check,
            timeout=COMMAND_SECONDS,
        )

    def newest_run(self, flow_name: str) -> dict[str, Any]:
        """Return the flow's run that was created last."""
        query = {"flows": {"name": {"any_": [flow_name]}}, "sort": "START_TIME_DESC", "limit": 1}
        return dict(self.client.post("/flow_runs/filter", json=query).json()[0])

    def tasks_of(self, run_id: str) -> list[dict[str, Any]]:
        """Return the task runs of a flow run."""
        query = {"flow_runs": {"id": {"any_": [run_id]}}}
        return list(self.client.post("/task_runs/filter", json=query).json())

    def deployment(self, name: str) -> dict[str, Any]:
        """Return a deployment by `flow/name`."""
        return dict(self.client.get(f"/deployments/name/{name}").json())

    def deploy(self, pool: str, flow_name: str, entrypoint: str, path: Path) -> str:
        """Create a deployment of `entrypoint` (`file.py:function`) in the folder `path` and return its id."""
        flow_id = self.post("/flows/", {"name": flow_name})["id"]
        deployment = {
            "name": flow_name,
            "flow_id": flow_id,
            "work_pool_name": pool,
            "entrypoint": entrypoint,
            "path": str(path),
            "enforce_parameter_schema": False,
        }
        return str(self.post("/deployments/", deployment)["id"])

    def run(self, deployment_id: str, parameters: Mapping[str, object]) -> str:
        """Start a run and return its id."""
        created = self.post(f"/deployments/{deployment_id}/create_flow_run", {"parameters": parameters})
        return str(created["id"])

    def state(self, run_id: str) -> str:
        """Name of the run's state: `Running`, `Cancelled`, `Crashed`, ..."""
        answer = self.client.get(f"/flow_runs/{run_id}")
        answer.raise_for_status()
        return str(answer.json()["state"]["name"])

    def cancel(self, run_id: str) -> None:
        """Ask for cancellation, as the UI's button does."""
        self.post(f"/flow_runs/{run_id}/set_state", {"state": {"type": "CANCELLING", "name": "Cancelling"}})

    def post(self, path: str, body: Mapping[str, object]) -> dict[str, Any]:
        """Call the API and return its JSON answer; as Prefect's own client does, again while SQLite is locked (503)."""
        for _ in range(RETRIES):
            answer = self.client.post(path, json=body)
            if answer.status_code != httpx.codes.SERVICE_UNAVAILABLE:
                break
            time.sleep(1)
        assert answer.is_success, f"{path}: {answer.status_code} {answer.text}"
        return dict(answer.json())

    def logs(self) -> str:
        """Return the last lines of the server's and the workers' output."""
        return "\n".join(f"== {path.name}\n{path.read_text()[-3000:]}" for path in sorted(self.work_dir.glob("*.log")))

    def stop(self) -> None:
        """End workers, then the server, each with its descendants."""
        self.client.close()
        for process in reversed(self._processes):
            if process.poll() is None:
                tree = psutil.Process(process.pid).children(recursive=True)
                process.send_signal(signal.SIGINT)
                try:
                    process.wait(10)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()
                for left in tree:
                    if left.is_running():
                        left.kill()
        self._processes.clear()

    def _start(self, name: str, *arguments: str) -> subprocess.Popen[bytes]:
        with (self.work_dir / f"{name}-{len(self._processes)}.log").open("wb") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "prefect", *arguments],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=self._environment,
                start_new_session=True,
                # A job that a shell started in the background ignores SIGINT, and so would the server's stop.
                preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
            )
        self._processes.append(process)
        return process

    def _healthy(self) -> bool:
        try:
            return self.client.get("/health").is_success
        except httpx.TransportError:
            return False

    def _online_workers(self, pool: str) -> int:
        answer = self.client.post(f"/work_pools/{pool}/workers/filter", json={})
        return sum(worker["status"] == "ONLINE" for worker in answer.json()) if answer.is_success else 0

    def _await(self, condition: Any, complaint: str) -> None:
        deadline = time.monotonic() + START_SECONDS
        while not condition():
            ended = [process.args for process in self._processes if process.poll() is not None]
            if ended or time.monotonic() > deadline:
                raise RuntimeError(f"{complaint} (ended: {ended})\n{self.logs()}")
            time.sleep(0.1)
