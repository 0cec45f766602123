"""The MLflow run of a tuneline run: one, however many attempts the run takes."""

import logging
import time
from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Final

from pydantic import BaseModel

from tuneline.contracts.errors import ServiceUnavailable, UserError
from tuneline.contracts.section import flat_values
from tuneline.registry.connection import Registry
from tuneline.registry.metrics import MetricWriter

if TYPE_CHECKING:
    from mlflow.entities import Metric, Run
    from mlflow.tracking import MlflowClient

FINGERPRINT_TAG: Final = "tuneline.fingerprint"
LONGEST_PARAMETER: Final = 6000
"""MLflow's limit for a parameter's value, in characters."""
PARAMETERS_PER_BATCH: Final = 100
DIGEST_LENGTH: Final = 32
"""Characters kept of a data set's sha256: MLflow refuses digests of more than 36."""
FINISH_PATIENCE_SECONDS: Final = 60.0

log = logging.getLogger(__name__)


class RunStatus(StrEnum):
    """How an MLflow run ended; a pre-empted one was `KILLED` and is reopened by the next attempt."""

    FINISHED = "FINISHED"
    FAILED = "FAILED"
    KILLED = "KILLED"


class LiveRun:
    """A run that is being logged to. Metrics go out in the background; a server that is away costs a warning."""

    def __init__(self, registry: Registry, run: "Run", last_steps: Mapping[str, int], *, resumed: bool) -> None:
        """Log to `run`; `last_steps` holds the last step that it has of each metric."""
        self._registry = registry
        self._last_steps = dict(last_steps)
        self._writer = MetricWriter(self._send)
        self.run_id: str = run.info.run_id
        self.experiment_id: str = run.info.experiment_id
        self.resumed = resumed

    @property
    def url(self) -> str | None:
        """The run's page, when MLflow is a server."""
        address = self._registry.address.rstrip("/")
        page = f"{address}/#/experiments/{self.experiment_id}/runs/{self.run_id}"
        return page if address.startswith("http") else None

    def log_batch(self, step: int, metrics: Mapping[str, float]) -> None:
        """Queue the metrics of a step; those that the run has already, from this attempt or an earlier one, stay."""
        from mlflow.entities import Metric

        now_ms = int(time.time() * 1000)
        fresh = {key: value for key, value in metrics.items() if step > self._last_steps.get(key, -1)}
        self._last_steps.update(dict.fromkeys(fresh, step))
        self._writer.add([Metric(key, float(value), now_ms, step) for key, value in fresh.items()])

    def log_sample(self, metrics: Mapping[str, float]) -> None:
        """Queue a sample of figures that belong to a time and not to a step: each follows the last one of its name."""
        for key, value in metrics.items():
            self.log_batch(self._last_steps.get(key, -1) + 1, {key: value})

    def log_dataset(self, name: str, sha256: str, source: str, context: str) -> None:
        """Name a data set that the run reads, by its digest; `context` is as `training` or `held_out`."""
        from mlflow.entities import Dataset, DatasetInput, InputTag

        dataset = Dataset(name=name, digest=sha256[:DIGEST_LENGTH], source_type="local", source=source)
        with self._registry.calls() as client:
            client.log_inputs(self.run_id, datasets=[DatasetInput(dataset, [InputTag("mlflow.data.context", context)])])
            client.set_tag(self.run_id, f"tuneline.data_sha256.{context}", sha256)

    def log_artifact_file(self, path: Path, folder: str = "") -> None:
        """Upload a file into a folder of the run's artifacts; raises `ServiceUnavailable`."""
        with self._registry.calls() as client:
            client.log_artifact(self.run_id, str(path), folder or None)

    def log_artifacts(self, directory: Path, folder: str = "") -> None:
        """Upload a folder's content; raises `ServiceUnavailable`."""
        with self._registry.calls() as client:
            client.log_artifacts(self.run_id, str(directory), folder or None)

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Set tags of the run; raises `ServiceUnavailable`."""
        from mlflow.entities import RunTag

        with self._registry.calls() as client:
            client.log_batch(self.run_id, tags=[RunTag(key, value) for key, value in tags.items()])

    def finish(self, status: RunStatus, patience_seconds: float = FINISH_PATIENCE_SECONDS) -> None:
        """Send what is queued and close the run; what a server that is away did not take is a warning."""
        missing = self._writer.close(patience_seconds)
        if missing:
            log.warning("%d metric points did not reach MLflow at %s", missing, self._registry.address)
        try:
            with self._registry.calls() as client:
                client.set_terminated(self.run_id, status.value)
        except ServiceUnavailable as error:
            log.warning("the MLflow run %s stays open: %s", self.run_id, error)

    def _send(self, points: "list[Metric]") -> None:
        # Sending again what did arrive is harmless: MLflow keeps one of points equal in key, step, time and value.
        with self._registry.calls() as client:
            client.log_batch(self.run_id, metrics=points)


def start_run(
    registry: Registry, experiment: str, run_name: str, fingerprint: str, parameters: Mapping[str, str]
) -> LiveRun:
    """Open the MLflow run of a fingerprint: the one that an earlier attempt left, or a new one.

    Args:
        registry: where to log.
        experiment: name of the experiment, created when it is not there.
        run_name: the run's name in the UI.
        fingerprint: identity of the whole run; must cover `parameters`.
        parameters: flat, as `flat_parameters` makes them.

    Raises:
        ServiceUnavailable: when MLflow is away.
        UserError: when the experiment was deleted.
    """
    with registry.lock(f"run-{fingerprint}"), registry.calls() as client:
        experiment_id = _experiment(client, registry, experiment)
        found = _find_run(client, experiment_id, fingerprint)
        run = found or client.create_run(experiment_id, tags={FINGERPRINT_TAG: fingerprint}, run_name=run_name)
        if found:
            client.update_run(run.info.run_id, status="RUNNING")
        _log_parameters(client, run, parameters)
        return LiveRun(registry, run, _last_steps(client, run), resumed=found is not None)


def flat_parameters(spec: BaseModel) -> dict[str, str]:
    """Write a config as MLflow parameters: `section.key` and the value as text."""
    return {name: str(value) for name, value in flat_values(spec)}


def _experiment(client: "MlflowClient", registry: Registry, name: str) -> str:
    from mlflow.exceptions import MlflowException

    found = client.get_experiment_by_name(name)
    if found is None:
        root = str(registry.artifact_root) if registry.artifact_root else None
        try:
            return str(client.create_experiment(name, artifact_location=root))
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
            found = client.get_experiment_by_name(name)  # another run created it meanwhile
    if found.lifecycle_stage == "deleted":
        fix = f"`mlflow experiments restore -x {found.experiment_id}`, or another `registry.experiment`"
        raise UserError.of(f"the MLflow experiment `{name}` was deleted", f"MLflow at {registry.address}", fix)
    return str(found.experiment_id)


def _find_run(client: "MlflowClient", experiment_id: str, fingerprint: str) -> "Run | None":
    wanted = f"tags.`{FINGERPRINT_TAG}` = '{fingerprint}'"
    runs = client.search_runs([experiment_id], wanted, max_results=1, order_by=["attributes.start_time ASC"])
    return runs[0] if runs else None


def _log_parameters(client: "MlflowClient", run: "Run", parameters: Mapping[str, str]) -> None:
    from mlflow.entities import Param

    known = run.data.params  # MLflow refuses to change a parameter
    new = [Param(key, _shortened(value)) for key, value in parameters.items() if key not in known]
    for start in range(0, len(new), PARAMETERS_PER_BATCH):
        client.log_batch(run.info.run_id, params=new[start : start + PARAMETERS_PER_BATCH])


def _shortened(value: str) -> str:
    mark = " [...]"
    return value if len(value) <= LONGEST_PARAMETER else value[: LONGEST_PARAMETER - len(mark)] + mark


def _last_steps(client: "MlflowClient", run: "Run") -> dict[str, int]:
    """Find the last step of each metric; its latest value alone does not tell, since it is the latest by time."""
    run_id = run.info.run_id
    return {key: max(point.step for point in client.get_metric_history(run_id, key)) for key in run.data.metrics}
