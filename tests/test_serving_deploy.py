"""Deployment files parse, name the image, and give the server the time that its drain takes."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from serving_images import SPEC

from tuneline.serving.deploy import PRE_STOP_SECONDS, START_BUDGET_SECONDS, dns_label, write_deployment_files
from tuneline.serving.server_settings import EXIT_MARGIN_SECONDS

REFERENCE = "tuneline/support-bot:c0ffee"


def written(tmp_path: Path, drain_seconds: int = 45, gpus: int = 0) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    spec = SPEC.model_copy(update={"drain_seconds": drain_seconds})
    compose, kubernetes = write_deployment_files(tmp_path / "deploy", REFERENCE, "support_bot.v1", spec, gpus)
    return yaml.safe_load(compose.read_text()), list(yaml.safe_load_all(kubernetes.read_text()))


@pytest.mark.parametrize("drain_seconds", [0, 45, 600])
def test_a_pod_is_killed_only_after_the_pause_and_the_drain(tmp_path: Path, drain_seconds: int) -> None:
    compose, (deployment, _) = written(tmp_path, drain_seconds)
    pod = deployment["spec"]["template"]["spec"]
    pause = int(pod["containers"][0]["lifecycle"]["preStop"]["exec"]["command"][1])
    assert pause == PRE_STOP_SECONDS
    assert pod["terminationGracePeriodSeconds"] >= pause + drain_seconds + EXIT_MARGIN_SECONDS
    compose_grace = int(compose["services"]["support-bot-v1"]["stop_grace_period"].rstrip("s"))
    assert compose_grace >= drain_seconds + EXIT_MARGIN_SECONDS


def test_start_up_asks_a_question_with_a_long_budget_and_a_busy_pod_stays_in_service(tmp_path: Path) -> None:
    _, (deployment, _) = written(tmp_path)
    container = deployment["spec"]["template"]["spec"]["containers"][0]
    startup = container["startupProbe"]
    assert startup["exec"]["command"] == ["python3", "/etc/tuneline/ask.py"]
    assert startup["periodSeconds"] * startup["failureThreshold"] >= START_BUDGET_SECONDS
    assert container["readinessProbe"]["httpGet"]["path"] == "/health"


def test_the_service_finds_the_pods_and_both_name_the_image(tmp_path: Path) -> None:
    compose, (deployment, service) = written(tmp_path)
    labels = deployment["spec"]["template"]["metadata"]["labels"]
    assert service["spec"]["selector"].items() <= labels.items()
    assert deployment["spec"]["selector"]["matchLabels"].items() <= labels.items()
    assert deployment["spec"]["template"]["spec"]["containers"][0]["image"] == REFERENCE
    assert compose["services"]["support-bot-v1"]["image"] == REFERENCE


def test_the_root_is_read_only_and_what_the_server_writes_to_is_mounted(tmp_path: Path) -> None:
    compose, (deployment, _) = written(tmp_path)
    pod = deployment["spec"]["template"]["spec"]
    mounted = {mount["mountPath"] for mount in pod["containers"][0]["volumeMounts"]}
    assert pod["containers"][0]["securityContext"]["readOnlyRootFilesystem"]
    assert mounted == {"/tmp", "/home/vllm", "/dev/shm"}
    assert {volume.partition(":")[0] for volume in compose["services"]["support-bot-v1"]["tmpfs"]} == mounted - {
        "/dev/shm"
    }


def test_only_a_gpu_deployment_asks_for_gpus(tmp_path: Path) -> None:
    _, (cpu, _) = written(tmp_path)
    compose, (gpu, _) = written(tmp_path, gpus=2)
    assert "resources" not in cpu["spec"]["template"]["spec"]["containers"][0]
    assert gpu["spec"]["template"]["spec"]["containers"][0]["resources"] == {"limits": {"nvidia.com/gpu": 2}}
    devices = compose["services"]["support-bot-v1"]["deploy"]["resources"]["reservations"]["devices"]
    assert devices == [{"driver": "nvidia", "count": 2, "capabilities": ["gpu"]}]


@pytest.mark.parametrize(("model", "label"), [("a.b_c", "a-b-c"), ("7b-bot", "model-7b-bot"), ("bot-", "bot")])
def test_a_model_name_becomes_a_name_that_kubernetes_takes(model: str, label: str) -> None:
    assert dns_label(model) == label
