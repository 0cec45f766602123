"""Where things run: environment variables, never a config, never part of an artifact's identity."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Self

from pydantic import BaseModel, ConfigDict

TELEMETRY_OFF: Mapping[str, str] = {
    "DO_NOT_TRACK": "1",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "VLLM_NO_USAGE_STATS": "1",
}
"""Switches of the libraries and servers that report home by default."""


class Settings(BaseModel):
    """Places and services of this machine.

    Read once at an edge with `Settings.from_environment()` and passed on to what needs a place.
    """

    model_config = ConfigDict(frozen=True)

    home: Path
    """Root of the artifact store, the default MLflow database and the local Prefect database."""
    mlflow_tracking_uri: str
    """MLflow server, or the SQLite file under `home`."""
    serve_port: int
    """Port of 127.0.0.1 on which verify and `serve` publish the model; 0 takes a free one."""

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> Self:
        """Read `TUNELINE_HOME`, `MLFLOW_TRACKING_URI` and `TUNELINE_SERVE_PORT`."""
        home = Path(environment.get("TUNELINE_HOME", ".tuneline")).absolute()
        tracking = environment.get("MLFLOW_TRACKING_URI", "")
        return cls(
            home=home,
            mlflow_tracking_uri=tracking or f"sqlite:///{home}/mlflow.db",
            serve_port=int(environment.get("TUNELINE_SERVE_PORT", "0")),
        )

    @property
    def store_root(self) -> Path:
        """Folder of the artifact store."""
        return self.home / "store"

    @property
    def mlflow_artifact_root(self) -> Path:
        """Folder of MLflow's artifacts when the tracking URI is the default."""
        return self.home / "mlartifacts"

    @property
    def base_image_cache(self) -> Path:
        """Folder of what is known of base images."""
        return self.home / "base-images"

    @property
    def prefect_home(self) -> Path:
        """Folder of the local Prefect database."""
        return self.home / "prefect"


def switch_telemetry_off() -> None:
    """Set the switches for this process and its children; a value that the user set stays."""
    for name, value in TELEMETRY_OFF.items():
        os.environ.setdefault(name, value)
