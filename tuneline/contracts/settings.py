"""Where things run: environment variables, never a config, never part of an artifact's identity."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Self

from pydantic import BaseModel, ConfigDict

from tuneline.contracts.errors import UserError

TELEMETRY_OFF: Mapping[str, str] = {
    "DO_NOT_TRACK": "1",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "VLLM_NO_USAGE_STATS": "1",
}
"""Switches of the libraries and servers that report home by default."""


class Endpoint(BaseModel):
    """A host and a TCP port."""

    model_config = ConfigDict(frozen=True)

    host: str
    port: int

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read `HOST:PORT`.

        Raises:
            UserError: when it is not that.
        """
        host, _, port = text.rpartition(":")
        if not host or not port.isdecimal():
            raise UserError.of(f"{text!r} is no address", "TUNELINE_RENDEZVOUS", "write it as HOST:PORT")
        return cls(host=host, port=int(port))

    def __str__(self) -> str:
        """Render as `HOST:PORT`."""
        return f"{self.host}:{self.port}"


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
    nodes: int = 1
    """Machines that share the GPUs of a training; this one runs the flow, `tuneline node` runs on the others."""
    rendezvous: Endpoint | None = None
    """Where the nodes meet: this machine, by a name or address at which the others reach it."""

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> Self:
        """Read `TUNELINE_HOME`, `MLFLOW_TRACKING_URI`, `TUNELINE_SERVE_PORT`, `TUNELINE_NODES`, `TUNELINE_RENDEZVOUS`.

        Raises:
            UserError: when there are several nodes and no place to meet, or a value is not what it should be.
        """
        home = Path(environment.get("TUNELINE_HOME", ".tuneline")).absolute()
        tracking = environment.get("MLFLOW_TRACKING_URI", "")
        return cls(
            home=home,
            mlflow_tracking_uri=tracking or f"sqlite:///{home}/mlflow.db",
            serve_port=int(environment.get("TUNELINE_SERVE_PORT", "0")),
            nodes=_nodes(environment),
            rendezvous=rendezvous_of(environment),
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


def rendezvous_of(environment: Mapping[str, str] = os.environ) -> Endpoint | None:
    """Read `TUNELINE_RENDEZVOUS`; None where it is not set.

    Raises:
        UserError: when it is no address.
    """
    address = environment.get("TUNELINE_RENDEZVOUS")
    return Endpoint.parse(address) if address else None


def _nodes(environment: Mapping[str, str]) -> int:
    text = environment.get("TUNELINE_NODES", "1")
    if not text.isdecimal() or int(text) < 1:
        raise UserError.of(f"{text!r} is no number of machines", "TUNELINE_NODES", "set it to 1 or more")
    if int(text) > 1 and not environment.get("TUNELINE_RENDEZVOUS"):
        fix = "set it to HOST:PORT of the machine that runs the flow, on all of them"
        raise UserError.of(f"{text} nodes have no place to meet", "TUNELINE_RENDEZVOUS", fix)
    return int(text)


def processes_per_node(gpus: int, settings: Settings) -> int:
    """Divide the GPUs of a config among the nodes.

    Raises:
        UserError: when they do not divide.
    """
    if gpus % settings.nodes:
        what = f"{gpus} GPUs cannot be shared equally by {settings.nodes} nodes (TUNELINE_NODES)"
        raise UserError.of(what, "budget.gpus", f"set it to a multiple of {settings.nodes}")
    return gpus // settings.nodes


def switch_telemetry_off() -> None:
    """Set the switches for this process and its children; a value that the user set stays."""
    for name, value in TELEMETRY_OFF.items():
        os.environ.setdefault(name, value)
