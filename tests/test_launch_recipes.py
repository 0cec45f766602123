"""The launch recipes in docs/launch do what the documentation says, as far as that shows without a cluster."""

import os
import subprocess
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from processes import ROOT

from flows.guardian import KILL_SECONDS
from flows.launch import SLACK_SECONDS
from tuneline.cli.main import main
from tuneline.contracts.errors import ExitCode
from tuneline.contracts.lifeline import DEFAULT_GRACE_SECONDS
from tuneline.contracts.settings import Endpoint, Settings

LAUNCH = ROOT / "docs" / "launch"
ENDING_SECONDS = DEFAULT_GRACE_SECONDS + KILL_SECONDS + SLACK_SECONDS
OF_PREFECT = {
    "{{ name }}-": "otter-",
    "{{ namespace }}": "ml",
    "{{ labels }}": {},
    "{{ annotations }}": {},
    "{{ service_account_name }}": "tuneline",
    "{{ image }}": "registry/tuneline:1",
    "{{ image_pull_policy }}": "IfNotPresent",
    "{{ command }}": ["prefect", "flow-run", "execute"],
}
"""What prefect-kubernetes 0.8.0 puts in place of its variables."""


def filled_in(value: Any) -> Any:
    match value:
        case dict():
            return {key: filled_in(one) for key, one in value.items()}
        case list():
            return [filled_in(one) for one in value]
        case str() if "{{" in value:
            return OF_PREFECT[value]
    return value


@pytest.fixture(scope="module")
def job() -> dict[str, Any]:
    made: dict[str, Any] = filled_in(yaml.safe_load((LAUNCH / "kubernetes-job.yaml").read_text()))
    for key in ("completions", "parallelism"):  # Prefect asks for them where Kubernetes has no such fields
        assert made["spec"]["template"]["spec"].pop(key) == 1
    return made


def pod(job: dict[str, Any]) -> dict[str, Any]:
    spec: dict[str, Any] = job["spec"]["template"]["spec"]
    return spec


def test_the_manifests_hold_against_the_schemas_of_kubernetes(job):
    documents = [job, *yaml.safe_load_all((LAUNCH / "kubernetes.yaml").read_text())]
    assert [document["kind"] for document in documents] == ["Job", "Service", "PersistentVolumeClaim"]
    for document in documents:
        kubernetes_validate.validate(document, "1.33", strict=True)


def test_the_pods_find_each_other_and_their_volume(job):
    service, claim = yaml.safe_load_all((LAUNCH / "kubernetes.yaml").read_text())
    assert service["metadata"]["name"] == pod(job)["subdomain"]
    assert service["spec"]["selector"].items() <= job["spec"]["template"]["metadata"]["labels"].items()
    assert pod(job)["volumes"][0]["persistentVolumeClaim"]["claimName"] == claim["metadata"]["name"]


def test_the_pods_have_settings_that_exist_and_agree_with_the_number_of_pods(job):
    (container,) = pod(job)["containers"]
    variables = {entry["name"]: entry.get("value", "") for entry in container["env"]}
    expanded = {name: value.replace("$(JOB_NAME)", "otter-x7k2p") for name, value in variables.items()}
    settings = Settings.from_environment(expanded)
    assert settings.nodes == job["spec"]["completions"] == job["spec"]["parallelism"]
    assert settings.rendezvous == Endpoint(host="otter-x7k2p-0.tuneline", port=29400)
    assert settings.home == Path(container["volumeMounts"][0]["mountPath"])
    assert list(variables).index("JOB_NAME") < list(variables).index("TUNELINE_RENDEZVOUS")  # or it is not expanded


@pytest.mark.parametrize(("index", "runs"), [("0", "prefect flow-run execute"), ("1", "tuneline node")])
def test_pod_0_runs_the_flow_and_the_others_take_part(job, tmp_path, index, runs):
    (container,) = pod(job)["containers"]
    for name in ("prefect", "tuneline"):
        fake(tmp_path / name, 'echo "$(basename "$0") $@"')
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", "JOB_COMPLETION_INDEX": index}
    command = [*container["command"], *container["args"]]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == runs
    assert runs.split()[0] == "prefect" or runs.split()[1] in main.commands


def test_a_pod_gets_the_time_that_the_last_checkpoint_may_take(job):
    assert pod(job)["terminationGracePeriodSeconds"] > ENDING_SECONDS


def fake(path: Path, *lines: str) -> None:
    path.write_text("\n".join(["#!/bin/bash", *lines, ""]))
    path.chmod(0o755)


def sbatch(folder: Path, nodes: int, status: int = 0) -> tuple[int, list[str]]:
    """Run the Slurm script with commands that only write down how they were called."""
    calls = folder / "calls"
    fake(folder / "scontrol", f'if [[ $1 = show ]]; then printf "n%s\\n" 7 8 9; else echo "scontrol $@" >> {calls}; fi')
    fake(
        folder / "srun",
        f'echo "srun $@ | $TUNELINE_NODES $TUNELINE_RENDEZVOUS" >> {calls}',
        "trap 'exit 0' TERM",
        f'[[ "$*" == *"tuneline node"* ]] && {{ echo waiting > {folder}/waiting; while :; do sleep 0.05; done; }}',
        f"((TUNELINE_NODES == 1)) || until [[ -e {folder}/waiting ]]; do sleep 0.05; done",
        f"exit {status}",
    )
    environment = {
        **os.environ,
        "PATH": f"{folder}:{os.environ['PATH']}",
        "TUNELINE_HOME": str(folder),
        "SLURM_JOB_NODELIST": "n[7-9]",
        "SLURM_JOB_NUM_NODES": str(nodes),
        "SLURM_JOB_ID": "123456",
    }
    command = ["bash", str(LAUNCH / "slurm.sh"), "run.yaml", "--set", "training.seed=3"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert done.stderr == ""
    return done.returncode, sorted(calls.read_text().splitlines())


def test_under_slurm_the_first_node_runs_the_flow_and_ends_the_others(tmp_path):
    status, calls = sbatch(tmp_path, nodes=3)
    assert status == ExitCode.DONE
    assert calls == [
        "srun --nodes=1 --ntasks=1 --nodelist=n7 tuneline run run.yaml --set training.seed=3 | 3 n7:23456",
        "srun --nodes=2 --ntasks=2 --exclude=n7 tuneline node | 3 n7:23456",
    ]


def test_under_slurm_one_node_needs_no_others(tmp_path):
    assert len(sbatch(tmp_path, nodes=1)[1]) == 1


def test_under_slurm_a_preempted_run_is_queued_again_and_a_failed_one_is_not(tmp_path):
    for status in (ExitCode.FAILED, ExitCode.PREEMPTED):
        folder = tmp_path / status.name
        folder.mkdir()
        returned, calls = sbatch(folder, nodes=2, status=status)
        assert returned == status
        assert ("scontrol requeue 123456" in calls) is (status == ExitCode.PREEMPTED)


def test_slurm_gives_a_warning_in_time_for_the_last_checkpoint():
    options = [line.removeprefix("#SBATCH ") for line in (LAUNCH / "slurm.sh").read_text().splitlines()]
    (notice,) = [option for option in options if option.startswith("--signal=TERM@")]
    assert float(notice.removeprefix("--signal=TERM@")) > ENDING_SECONDS
