"""MLflow registries of both kinds, by `pytest_plugins = ["registry_fixtures"]`; one server serves the session."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from mlflow_server import MlflowServer, mlflow_server

from tuneline.contracts.settings import Settings
from tuneline.registry.connection import Registry, connect


@pytest.fixture(scope="session")
def migrated_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty MLflow database; copying it saves each test the 7 s that migrations take."""
    settings = Settings.from_environment({"TUNELINE_HOME": str(tmp_path_factory.mktemp("migrated"))})
    connect(settings)
    return settings.home / "mlflow.db"


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory, migrated_database: Path) -> Iterator[MlflowServer]:
    with mlflow_server(tmp_path_factory.mktemp("mlflow"), migrated_database) as running:
        yield running


@pytest.fixture
def server_registry(server: MlflowServer, tmp_path: Path) -> Registry:
    return connect(Settings.from_environment({"TUNELINE_HOME": str(tmp_path), "MLFLOW_TRACKING_URI": server.uri}))


@pytest.fixture
def local_registry(migrated_database: Path, tmp_path: Path) -> Registry:
    settings = Settings.from_environment({"TUNELINE_HOME": str(tmp_path)})
    shutil.copy(migrated_database, settings.home / "mlflow.db")
    return connect(settings)


@pytest.fixture(params=["server", "sqlite"])
def registry(request: pytest.FixtureRequest) -> Registry:
    """Each kind of registry in turn."""
    connected: Registry = request.getfixturevalue("server_registry" if request.param == "server" else "local_registry")
    return connected
