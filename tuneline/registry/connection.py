"""A connection to MLflow that was tried before anything depends on it.

Preflight asks an API route: `/health` answers 200 even where every API call is refused (a host name that the server
does not allow, missing credentials).
"""

import logging
import os
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit, urlunsplit

from tuneline.contracts.errors import ServiceUnavailable
from tuneline.contracts.settings import Settings, switch_telemetry_off
from tuneline.contracts.store import exclusive_lock

if TYPE_CHECKING:
    from mlflow.exceptions import MlflowException
    from mlflow.tracking import MlflowClient

MLFLOW_DEFAULTS: Final[Mapping[str, str]] = {
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "60",
    # Pauses of 0, 4, 8 and 16 s ride out a restart of the server (18 s on two cores); MLflow's own 7 take four minutes.
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "4",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
}
"""Set where the user did not: every call ends, and standard output stays ours."""
PREFLIGHT_TIMEOUT_SECONDS: Final = 5
SEARCH_EXPERIMENTS: Final = "/api/2.0/mlflow/experiments/search"
CREDENTIALS_FIX: Final = "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN"
ADDRESS_FIX: Final = "start it, or correct MLFLOW_TRACKING_URI; without that variable a local SQLite file is used"


@dataclass(frozen=True)
class Registry:
    """MLflow at an address that answered."""

    mlflow: "MlflowClient"
    address: str
    """Without credentials: it may be shown."""
    artifact_root: Path | None
    """Folder that artifacts are written to directly; None when the server takes them."""
    lock_root: Path

    @contextmanager
    def lock(self, name: str) -> Iterator[None]:
        """Serialise an action over the processes of this machine: MLflow has neither locks nor compare-and-swap."""
        with exclusive_lock(self.lock_root / f"mlflow-{name}"):
            yield

    @contextmanager
    def calls(self) -> Iterator["MlflowClient"]:
        """Give the client.

        Raises:
            ServiceUnavailable: when MLflow goes away or refuses the credentials inside the block.
        """
        import requests
        from mlflow.exceptions import MlflowException

        try:
            yield self.mlflow
        except requests.HTTPError as error:  # MLflow leaves the errors of artifact uploads as they are
            what, fix = f"it answers with an error: {_first_line(error)}", "read the server's log"
            raise ServiceUnavailable.of(what, f"MLflow at {self.address}", fix) from error
        except requests.RequestException as error:
            raise _gone(self.address, error) from error
        except MlflowException as error:
            unavailable = _service_error(error, self.address)
            if unavailable is None:
                raise
            raise unavailable from error


def connect(settings: Settings) -> Registry:
    """Connect to the MLflow that settings name; a SQLite file is created on first use (2 to 8 s on two cores).

    Raises:
        ServiceUnavailable: within seconds, saying which address, what happened and what to do.
    """
    switch_telemetry_off()
    for name, value in MLFLOW_DEFAULTS.items():
        os.environ.setdefault(name, value)
    uri = settings.mlflow_tracking_uri
    served = urlsplit(uri).scheme in ("http", "https")
    address = _without_credentials(uri)
    if served:
        _check_server(uri, address)
        client = _client(uri)
    else:
        with exclusive_lock(settings.home / "locks" / "mlflow-database"):  # two first uses would both run migrations
            client = _open_database(uri, address)
    return Registry(
        mlflow=client,
        address=address,
        artifact_root=None if served else settings.mlflow_artifact_root,
        lock_root=settings.home / "locks",
    )


def import_mlflow() -> None:
    """Import MLflow's client ahead of its use: 3 to 6 s on two cores, worth spending while something else waits."""
    switch_telemetry_off()
    import mlflow.tracking

    assert mlflow.tracking is not None


def _client(uri: str) -> "MlflowClient":
    import mlflow
    from mlflow.tracking import MlflowClient

    for noisy in ("mlflow", "alembic"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    # Registering a version in SQLite looks the logged model up through a second client, made for the global address.
    mlflow.set_tracking_uri(uri)
    return MlflowClient(tracking_uri=uri, registry_uri=uri)


def _check_server(uri: str, address: str) -> None:
    from mlflow.exceptions import MlflowException
    from mlflow.utils.credentials import get_default_host_creds
    from mlflow.utils.rest_utils import http_request

    try:
        response = http_request(
            get_default_host_creds(uri),
            SEARCH_EXPERIMENTS,
            "POST",
            max_retries=1,
            timeout=PREFLIGHT_TIMEOUT_SECONDS,
            raise_on_status=False,
            json={"max_results": 1},
        )
    except MlflowException as error:
        raise _gone(address, error) from error
    problem = _refusal(response.status_code, response.text, urlsplit(uri).hostname or "")
    if problem:
        raise ServiceUnavailable.of(problem[0], f"MLflow at {address}", problem[1])


def _refusal(status: int, body: str, host: str) -> tuple[str, str] | None:
    """Say what a server's answer to the preflight means and what to do; None when it is MLflow's own."""
    match status:
        case 200 if body.lstrip().startswith("{"):
            return None
        case 401:
            return "the credentials are missing or wrong (401)", CREDENTIALS_FIX
        case 403 if "Invalid Host header" in body:
            fix = f"start the server with --allowed-hosts '{host},{host}:*'; its /health answers all the same"
            return f"the server does not let itself be called `{host}` (403)", fix
        case 403:
            return "this user may not read experiments (403)", f"ask for permission, or {CREDENTIALS_FIX}"
        case 500 | 502 | 503 | 504:
            return f"the server fails ({status})", "read its log; its database may be away"
    return f"what answers there is not MLflow (status {status})", "correct MLFLOW_TRACKING_URI, its path included"


def _open_database(uri: str, address: str) -> "MlflowClient":
    from mlflow.exceptions import MlflowException

    if uri.startswith("sqlite:///"):
        _check_sqlite(Path(uri.removeprefix("sqlite:///")), address)
    try:
        return _client(uri)
    except MlflowException as error:
        fix = "back it up, then `mlflow db upgrade` it" if "out-of-date" in str(error) else ADDRESS_FIX
        raise ServiceUnavailable.of(_first_line(error), f"MLflow at {address}", fix) from error


def _check_sqlite(path: Path, address: str) -> None:
    """Try the file first: MLflow retries one that cannot be opened for over a minute."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        connection = sqlite3.connect(path, timeout=PREFLIGHT_TIMEOUT_SECONDS)
        connection.execute("PRAGMA schema_version")
        connection.close()
    except (OSError, sqlite3.Error) as error:
        fix = "move it away, or set TUNELINE_HOME to a folder that can be written"
        raise ServiceUnavailable.of(f"the database cannot be used: {error}", f"MLflow at {address}", fix) from error


def _service_error(error: "MlflowException", address: str) -> ServiceUnavailable | None:
    """Tell the errors of a service that is away or refuses from those of what was asked."""
    import requests

    if error.error_code in ("PERMISSION_DENIED", "UNAUTHENTICATED"):
        return ServiceUnavailable.of(_first_line(error), f"MLflow at {address}", CREDENTIALS_FIX)
    away = isinstance(error.__context__, requests.RequestException)
    return _gone(address, error) if away or error.error_code == "TEMPORARILY_UNAVAILABLE" else None


def _gone(address: str, error: Exception) -> ServiceUnavailable:
    cause = error.__context__ or error
    reason = getattr(cause.args[0], "reason", cause) if cause.args else cause  # urllib3 wraps it in its own retry error
    return ServiceUnavailable.of(f"it does not answer: {reason}", f"MLflow at {address}", ADDRESS_FIX)


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0]


def _without_credentials(uri: str) -> str:
    parts = urlsplit(uri)
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2])) if "@" in parts.netloc else uri
