"""The Prefect server of a run that found none: started beside the run, and ended with it, however the run ends.

Prefect can start one by itself, from inside the flow's process. That one outlives a run that is killed, and its start
is waited for; this one dies with its parent (prctl) and starts while the run's own imports go on.
"""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from tuneline.contracts.lifeline import signal_on_parent_death
from tuneline.contracts.ports import free_port

START_SECONDS = 120.0
"""A first start runs its migrations: 11 to 28 s on two cores."""
POLL_SECONDS = 0.1
APPLICATION = "prefect.server.api.server:create_app"
QUIET = {
    "PREFECT_SERVER_UI_ENABLED": "false",
    "PREFECT_SERVER_LOGGING_LEVEL": "CRITICAL",  # tasks that are cancelled when the server ends are logged as errors
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
}


@contextmanager
def local_server() -> Iterator[str]:
    """Start a server on a free port of 127.0.0.1; gives the URL of its API at once, before it answers."""
    port = free_port()
    server = subprocess.Popen(
        [sys.executable, "-P", "-m", "flows.local_server", str(port)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**os.environ, **QUIET},
        start_new_session=True,  # Ctrl-C is the run's to handle: it still has a state to report
    )
    try:
        yield f"http://127.0.0.1:{port}/api"
    finally:
        server.terminate()
        server.wait()


def serve(port: int) -> None:
    """Be the server."""
    signal_on_parent_death()
    import uvicorn

    uvicorn.run(APPLICATION, factory=True, host="127.0.0.1", port=port, log_level="critical", lifespan="on")


if __name__ == "__main__":
    serve(int(sys.argv[1]))
