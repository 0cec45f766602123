"""Serving a run's image on this machine, in the foreground, for trying it out."""

import shutil
import subprocess

from tuneline.contracts.errors import StageFailed, UserError
from tuneline.contracts.run_record import RunRecord
from tuneline.serving.container import HARDENING, device_options
from tuneline.serving.engine import require_engine
from tuneline.serving.server_settings import PORT


def serve_image(record: RunRecord, port: int) -> None:
    """Start the container and stay until it ends or Ctrl-C.

    Raises:
        UserError: the run made no image, or Docker is not reachable.
        StageFailed: the server ended by itself.
    """
    if record.image_reference is None:
        fix = "its verdict was not PROMOTE, or no engine was there: see `tuneline show`"
        raise UserError.of("the run made no image", record.run_id, fix)
    require_engine()
    command = ["docker", "run", "--rm", "--shm-size", "1g", *HARDENING, "--publish", f"127.0.0.1:{port}:{PORT}"]
    command += device_options(gpus=shutil.which("nvidia-smi") is not None)
    try:
        status = subprocess.run([*command, record.image_reference], check=False).returncode
    except KeyboardInterrupt:
        return
    if status != 0:
        raise StageFailed("serve", "failed", f"the container ended with status {status}; its log stands above")
