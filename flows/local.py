"""A run without any server to start first: where PREFECT_API_URL names none, a temporary one is started and ended."""

import os
import signal
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from types import FrameType
from typing import NoReturn

from flows.inputs import open_inputs
from flows.local_server import POLL_SECONDS, START_SECONDS, local_server
from flows.progress import TERMINAL
from tuneline.contracts.errors import ExitCode, ServiceUnavailable, TunelineError
from tuneline.contracts.run_record import RunRecord
from tuneline.contracts.settings import Settings, switch_telemetry_off

PREFECT_SETTINGS = {
    "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "CRITICAL",  # the table and the bar say what the log would
    "PREFECT_LOGGING_TO_API_WHEN_MISSING_FLOW": "ignore",
    "PREFECT_LOGGING_EXTRA_LOGGERS": "tuneline,flows",
}
PREFLIGHT_SECONDS = 5.0


class RunInterrupted(TunelineError):
    """The run was stopped from outside: Ctrl-C or SIGTERM."""

    exit_code = ExitCode.PREEMPTED

    def __init__(self) -> None:
        super().__init__("interrupted; nothing is lost: the same command again finds what was made and goes on")


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
    open_inputs(config, overrides, settings)  # the flow does this again; here it answers before anything is started
    _prepare_environment(settings, terminal)
    given = os.environ.get("PREFECT_API_URL")
    if given is not None:
        check_prefect(given)
    with _sigterm_as_interrupt(), nullcontext(given) if given else local_server() as api_url:
        os.environ["PREFECT_API_URL"] = api_url
        try:
            return _run_flow(config, overrides, api_url)
        except KeyboardInterrupt as interruption:
            raise RunInterrupted() from interruption
        finally:
            if given is None:
                del os.environ["PREFECT_API_URL"]


def check_prefect(api_url: str) -> None:
    """Ask a Prefect server whether it is there; raises `ServiceUnavailable`."""
    try:
        urllib.request.urlopen(f"{api_url.rstrip('/')}/health", timeout=PREFLIGHT_SECONDS).close()
    except (urllib.error.URLError, OSError, ValueError) as error:
        fix = "start it, or correct PREFECT_API_URL; without that variable a temporary server is used"
        raise ServiceUnavailable.of(f"it does not answer: {error}", f"Prefect at {api_url}", fix) from error


def _run_flow(config: str, overrides: Sequence[str], api_url: str) -> RunRecord:
    # 3 to 6 s on two cores, spent while the server starts in its own process.
    threading.Thread(target=_import_mlflow, name="import-mlflow", daemon=True).start()
    from prefect.exceptions import TerminationSignal
    from prefect.logging.handlers import APILogHandler

    from flows.endings import typed_result
    from flows.finetune import finetune

    _wait_for(api_url)
    try:
        return typed_result(finetune(config, tuple(overrides), return_state=True))
    except TerminationSignal as signalled:
        raise KeyboardInterrupt from signalled
    finally:
        APILogHandler().flush()  # while there is a server to log to


def _wait_for(api_url: str) -> None:
    deadline = time.monotonic() + START_SECONDS
    while True:
        try:
            return check_prefect(api_url)
        except ServiceUnavailable:
            if time.monotonic() > deadline:
                raise
            time.sleep(POLL_SECONDS)


def _prepare_environment(settings: Settings, terminal: bool) -> None:
    switch_telemetry_off()
    os.environ.setdefault("PREFECT_HOME", str(settings.prefect_home))
    for name, value in PREFECT_SETTINGS.items():
        os.environ.setdefault(name, value)
    if terminal:
        os.environ[TERMINAL] = "1"


@contextmanager
def _sigterm_as_interrupt() -> Iterator[None]:
    """Have SIGTERM unwind the stack as Ctrl-C does; by default it ends Python with nothing cleared up."""

    def interrupt(_number: int, _frame: FrameType | None) -> NoReturn:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _import_mlflow() -> None:
    from tuneline.registry.connection import import_mlflow

    import_mlflow()
