"""A run without any server to start first: Prefect starts a temporary one and ends it with the run."""

import os
import threading
import urllib.error
import urllib.request
from collections.abc import Sequence

from flows.context import open_inputs
from flows.progress import TERMINAL
from tuneline.contracts.errors import ExitCode, ServiceUnavailable, TunelineError
from tuneline.contracts.run_record import RunRecord
from tuneline.contracts.settings import Settings, switch_telemetry_off

PREFECT_SETTINGS = {
    # The first start of the temporary server runs its migrations: 11 to 28 s on two cores, Prefect's own limit is 20.
    "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "120",
    # An interrupt ends the temporary server first; asking it five times again would take a minute.
    "PREFECT_CLIENT_MAX_RETRIES": "1",
    "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "CRITICAL",  # the table and the bar say what the log would
    "PREFECT_SERVER_LOGGING_LEVEL": "CRITICAL",  # a temporary server logs cancelled tasks as errors when it is ended
    "PREFECT_LOGGING_TO_API_WHEN_MISSING_FLOW": "ignore",
    "PREFECT_LOGGING_EXTRA_LOGGERS": "tuneline,flows",
}
PREFLIGHT_SECONDS = 5.0


def run_locally(config: str, overrides: Sequence[str], *, terminal: bool = True) -> RunRecord:
    """Run the flow in this process.

    Args:
        config: path of the YAML file.
        overrides: `section.key=value`.
        terminal: show progress on standard error rather than in Prefect's UI.

    Returns:
        The run's record, with its exit code.

    Raises:
        TunelineError: as the stages raise it; the record of a run that began is saved before.
    """
    settings = Settings.from_environment()
    open_inputs(config, overrides, settings)  # the flow does this again; here it answers before Prefect's start
    _prepare_environment(settings, terminal)
    # 3 to 6 s on two cores, spent while Prefect's server starts in its own process.
    threading.Thread(target=_import_mlflow, name="import-mlflow", daemon=True).start()
    from prefect.exceptions import TerminationSignal

    from flows.endings import typed_result
    from flows.finetune import finetune

    try:
        return typed_result(finetune(config, tuple(overrides), return_state=True))
    except (KeyboardInterrupt, TerminationSignal) as interruption:
        raise RunInterrupted() from interruption


class RunInterrupted(TunelineError):
    """The run was stopped from outside: Ctrl-C or SIGTERM."""

    exit_code = ExitCode.PREEMPTED

    def __init__(self) -> None:
        super().__init__("interrupted; nothing is lost: the same command again finds what was made and goes on")


def _prepare_environment(settings: Settings, terminal: bool) -> None:
    switch_telemetry_off()
    if "PREFECT_API_URL" in os.environ:
        check_prefect(os.environ["PREFECT_API_URL"])
    os.environ.setdefault("PREFECT_HOME", str(settings.prefect_home))
    for name, value in PREFECT_SETTINGS.items():
        os.environ.setdefault(name, value)
    if terminal:
        os.environ[TERMINAL] = "1"


def check_prefect(api_url: str) -> None:
    """Ask a Prefect server whether it is there; raises `ServiceUnavailable`."""
    try:
        urllib.request.urlopen(f"{api_url.rstrip('/')}/health", timeout=PREFLIGHT_SECONDS).close()
    except (urllib.error.URLError, OSError, ValueError) as error:
        fix = "start it, or correct PREFECT_API_URL; without that variable a temporary server is used"
        raise ServiceUnavailable.of(f"it does not answer: {error}", f"Prefect at {api_url}", fix) from error


def _import_mlflow() -> None:
    from tuneline.registry.connection import import_mlflow

    import_mlflow()
