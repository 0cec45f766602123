"""A registry that cannot be used says so before a run starts, in words that tell what to do."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from mlflow_server import MlflowServer

from tuneline.contracts.errors import ExitCode, ServiceUnavailable
from tuneline.contracts.ports import free_port
from tuneline.contracts.settings import Settings
from tuneline.registry.connection import Registry, connect

pytest_plugins = ["registry_fixtures"]


def settings_for(home: Path, uri: str) -> Settings:
    return Settings.from_environment({"TUNELINE_HOME": str(home), "MLFLOW_TRACKING_URI": uri})


@contextmanager
def answering(status: int, body: str) -> Iterator[str]:
    """Serve one answer to everything and give the address."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length", "0")))
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body.encode())

        def log_message(self, format: str, *arguments: object) -> None:
            """Keep the test's output clean."""

    stub = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=stub.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{stub.server_port}"
    finally:
        stub.shutdown()
        thread.join()
        stub.server_close()


def test_a_server_that_is_not_there_is_named_with_what_to_do(tmp_path: Path) -> None:
    address = f"http://127.0.0.1:{free_port()}"
    with pytest.raises(ServiceUnavailable) as caught:
        connect(settings_for(tmp_path, address))
    assert caught.value.exit_code is ExitCode.WRONG_INPUT
    (problem,) = caught.value.problems
    assert problem.where == f"MLflow at {address}"
    assert "Connection refused" in problem.what
    assert "MLFLOW_TRACKING_URI" in problem.fix


def test_a_password_in_the_address_is_not_shown(tmp_path: Path) -> None:
    port = free_port()
    with pytest.raises(ServiceUnavailable) as caught:
        connect(settings_for(tmp_path, f"http://ada:lovelace@127.0.0.1:{port}"))
    assert "lovelace" not in str(caught.value)
    assert f"MLflow at http://127.0.0.1:{port}" in str(caught.value)


def test_a_host_name_that_the_server_does_not_allow_is_told_from_missing_rights(
    server: MlflowServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The name that a compose service has inside its network; resolved here by sending the request to the server itself.
    monkeypatch.setenv("http_proxy", server.uri)
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    with pytest.raises(ServiceUnavailable) as caught:
        connect(settings_for(tmp_path, "http://mlflow:5000"))
    (problem,) = caught.value.problems
    assert problem.what == "the server does not let itself be called `mlflow` (403)"
    assert "--allowed-hosts 'mlflow,mlflow:*'" in problem.fix


@pytest.mark.parametrize(
    ("status", "body", "what", "fix"),
    [
        (401, "You are not authenticated.", "the credentials are missing or wrong (401)", "MLFLOW_TRACKING_USERNAME"),
        (403, "Permission denied", "this user may not read experiments (403)", "ask for permission"),
        (503, "upstream", "the server fails (503)", "its database may be away"),
        (404, "no", "what answers there is not MLflow (status 404)", "correct MLFLOW_TRACKING_URI"),
        (200, "<html>welcome</html>", "what answers there is not MLflow (status 200)", "correct MLFLOW_TRACKING_URI"),
    ],
)
def test_each_refusal_has_its_own_words(tmp_path: Path, status: int, body: str, what: str, fix: str) -> None:
    with answering(status, body) as address, pytest.raises(ServiceUnavailable) as caught:
        connect(settings_for(tmp_path, address))
    (problem,) = caught.value.problems
    assert problem.what == what
    assert fix in problem.fix


def test_a_database_file_that_is_none_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mlflow.db").write_text("not a database, and longer than SQLite's header of a hundred bytes" * 3)
    with pytest.raises(ServiceUnavailable, match="file is not a database"):
        connect(Settings.from_environment({"TUNELINE_HOME": str(tmp_path)}))


def test_a_server_that_goes_away_after_preflight_is_a_service_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with answering(200, '{"experiments": []}') as address:
        registry = connect(settings_for(tmp_path, address))
    with pytest.raises(ServiceUnavailable, match="Connection refused"), registry.calls() as client:
        client.search_experiments(max_results=1)


def test_a_local_registry_writes_nothing_outside_its_home(
    local_registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    with local_registry.calls() as client:
        assert [found.name for found in client.search_experiments()] == ["Default"]
    assert list(elsewhere.iterdir()) == []
    assert local_registry.artifact_root == tmp_path / "mlartifacts"
