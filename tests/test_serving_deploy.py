"""Deployment files are what Kubernetes takes, name the image by digest, and give the server the time of its drain."""

from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from serving_images import SPEC

from tuneline.serving.deploy import write_deployment_files
from tuneline.serving.deployment import PRE_STOP_SECONDS, START_BUDGET_SECONDS, Deployment, dns_label
from tuneline.serving.server_settings import EXIT_MARGIN_SECONDS, PORT, response_fingerprint

TAG, DIGEST, WEIGHTS = "tuneline/support-bot:c0ffee", "sha256:" + "ab" * 32, "5eed" * 16
BY_DIGEST = f"tuneline/support-bot@{DIGEST}"
FILES = {
    "compose.yaml": ["-"],
    "kubernetes.yaml": ["Deployment", "Service", "PodDisruptionBudget", "NetworkPolicy"],
    "kustomization.yaml": ["Kustomization"],
    "monitoring.yaml": ["PodMonitor"],
    "scaling-keda.yaml": ["ScaledObject"],
    "scaling-hpa.yaml": ["HorizontalPodAutoscaler"],
    "kserve.yaml": ["InferenceService"],
}
KUBERNETES_OWN = {"Deployment", "Service", "PodDisruptionBudget", "NetworkPolicy", "HorizontalPodAutoscaler"}


def written(tmp_path: Path, drain_seconds: int = 45, gpus: int = 0) -> dict[str, list[Any]]:
    spec = SPEC.model_copy(update={"drain_seconds": drain_seconds})
    deployment = Deployment("support_bot.v1", TAG, DIGEST, "vllm/vllm-openai:v0.32.0", spec, gpus)
    paths = write_deployment_files(tmp_path / "deploy", deployment, WEIGHTS)
    return {path.name: list(yaml.safe_load_all(path.read_text())) for path in paths}


def by_kind(files: dict[str, list[Any]]) -> dict[str, Any]:
    return {document.get("kind", "Compose"): document for documents in files.values() for document in documents}


def test_seven_files_hold_ten_documents(tmp_path: Path) -> None:
    files = written(tmp_path)
    assert {name: [one.get("kind", "-") for one in documents] for name, documents in files.items()} == FILES


@pytest.mark.parametrize("gpus", [0, 2])
def test_kubernetes_own_kinds_hold_against_its_published_schemas(tmp_path: Path, gpus: int) -> None:
    documents = by_kind(written(tmp_path, gpus=gpus))
    checked = [kind for kind in documents if kind in KUBERNETES_OWN]
    for kind in checked:
        kubernetes_validate.validate(documents[kind], "1.33", strict=True)
    assert set(checked) == KUBERNETES_OWN


def test_the_schemas_do_refuse_a_misspelt_key(tmp_path: Path) -> None:
    deployment = by_kind(written(tmp_path))["Deployment"]
    deployment["spec"]["template"]["spec"]["terminationGracePeriod"] = 90
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(deployment, "1.33", strict=True)


@pytest.mark.parametrize("drain_seconds", [0, 45, 600])
def test_a_pod_is_killed_only_after_the_pause_and_the_drain(tmp_path: Path, drain_seconds: int) -> None:
    documents = by_kind(written(tmp_path, drain_seconds))
    pod = documents["Deployment"]["spec"]["template"]["spec"]
    pause = int(pod["containers"][0]["lifecycle"]["preStop"]["exec"]["command"][1])
    assert pause == PRE_STOP_SECONDS
    needed = pause + drain_seconds + EXIT_MARGIN_SECONDS
    assert pod["terminationGracePeriodSeconds"] == needed
    assert documents["InferenceService"]["spec"]["predictor"]["terminationGracePeriodSeconds"] == needed
    compose_grace = int(documents["Compose"]["services"]["support-bot-v1"]["stop_grace_period"].rstrip("s"))
    assert compose_grace == drain_seconds + EXIT_MARGIN_SECONDS


def test_start_up_asks_a_question_with_a_long_budget_and_a_busy_pod_stays_in_service(tmp_path: Path) -> None:
    container = by_kind(written(tmp_path))["Deployment"]["spec"]["template"]["spec"]["containers"][0]
    startup = container["startupProbe"]
    assert startup["exec"]["command"] == ["python3", "/etc/tuneline/ask.py"]
    assert startup["periodSeconds"] * startup["failureThreshold"] >= START_BUDGET_SECONDS
    assert container["readinessProbe"]["httpGet"]["path"] == "/health"


def test_everything_on_kubernetes_names_the_image_by_digest(tmp_path: Path) -> None:
    documents = by_kind(written(tmp_path))
    assert documents["Deployment"]["spec"]["template"]["spec"]["containers"][0]["image"] == BY_DIGEST
    assert documents["InferenceService"]["spec"]["predictor"]["model"]["storageUri"] == f"oci://{BY_DIGEST}"
    (renamed,) = documents["Kustomization"]["images"]
    assert (renamed["name"], renamed["digest"]) == ("tuneline/support-bot", DIGEST)
    assert documents["Compose"]["services"]["support-bot-v1"]["image"] == TAG


def test_every_selector_finds_the_pods(tmp_path: Path) -> None:
    documents = by_kind(written(tmp_path))
    labels = documents["Deployment"]["spec"]["template"]["metadata"]["labels"]
    selectors = [
        documents["Service"]["spec"]["selector"],
        documents["NetworkPolicy"]["spec"]["podSelector"]["matchLabels"],
        *(
            documents[kind]["spec"]["selector"]["matchLabels"]
            for kind in ("Deployment", "PodDisruptionBudget", "PodMonitor")
        ),
    ]
    assert [selector == labels for selector in selectors] == [True] * 5
    targets = [
        documents[kind]["spec"]["scaleTargetRef"]["name"] for kind in ("ScaledObject", "HorizontalPodAutoscaler")
    ]
    assert targets == [documents["Deployment"]["metadata"]["name"]] * 2


def test_only_labelled_clients_and_the_monitoring_reach_the_server_and_it_reaches_nobody(tmp_path: Path) -> None:
    policy = by_kind(written(tmp_path))["NetworkPolicy"]["spec"]
    assert sorted(policy["policyTypes"]) == ["Egress", "Ingress"]
    assert policy["egress"] == []
    (rule,) = policy["ingress"]
    clients, monitoring = rule["from"]
    assert clients["podSelector"]["matchLabels"] == {"tuneline.io/may-ask": "support-bot-v1"}
    assert monitoring["namespaceSelector"]["matchLabels"] == {"kubernetes.io/metadata.name": "monitoring"}
    assert [port["port"] for port in rule["ports"]] == ["http"]


def test_a_node_can_be_drained_beside_a_single_replica(tmp_path: Path) -> None:
    documents = by_kind(written(tmp_path))
    assert documents["Deployment"]["spec"]["replicas"] == 1
    assert documents["PodDisruptionBudget"]["spec"]["maxUnavailable"] == 1


def test_scaling_reads_this_models_queue_and_guards_the_first_token(tmp_path: Path) -> None:
    documents = by_kind(written(tmp_path))
    queue, guard = (trigger["metadata"] for trigger in documents["ScaledObject"]["spec"]["triggers"])
    assert queue["query"] == 'sum(vllm:num_requests_waiting{model_name="support_bot.v1"})'
    assert "vllm:time_to_first_token_seconds_bucket" in guard["query"]
    assert (queue["threshold"], guard["threshold"]) == ("4", "2")
    (metric,) = documents["HorizontalPodAutoscaler"]["spec"]["metrics"]
    assert metric["pods"]["metric"]["name"] == "vllm_num_requests_waiting"


def test_kserve_runs_the_pinned_vllm_with_the_settings_that_were_verified(tmp_path: Path) -> None:
    model = by_kind(written(tmp_path))["InferenceService"]["spec"]["predictor"]["model"]
    assert model["image"] == "vllm/vllm-openai:v0.32.0"
    arguments = set(model["args"])
    assert {"--model=/mnt/models", "--served-model-name=support_bot.v1", f"--port={PORT}"} <= arguments
    assert {f"--fingerprint-value={response_fingerprint(WEIGHTS)}", "--generation-config=vllm"} <= arguments
    assert "--enforce-eager" in arguments  # a switch has no value
    assert {"name": "HF_HUB_OFFLINE", "value": "1"} in model["env"]


def test_the_root_is_read_only_and_what_the_server_writes_to_is_mounted(tmp_path: Path) -> None:
    documents = by_kind(written(tmp_path))
    pod = documents["Deployment"]["spec"]["template"]["spec"]
    mounted = {mount["mountPath"] for mount in pod["containers"][0]["volumeMounts"]}
    assert pod["containers"][0]["securityContext"]["readOnlyRootFilesystem"]
    assert mounted == {"/tmp", "/home/vllm", "/dev/shm"}
    compose = documents["Compose"]["services"]["support-bot-v1"]
    assert {volume.partition(":")[0] for volume in compose["tmpfs"]} == mounted - {"/dev/shm"}


def test_only_a_gpu_deployment_asks_for_gpus(tmp_path: Path) -> None:
    cpu, gpu = by_kind(written(tmp_path)), by_kind(written(tmp_path, gpus=2))
    assert "resources" not in cpu["Deployment"]["spec"]["template"]["spec"]["containers"][0]
    container = gpu["Deployment"]["spec"]["template"]["spec"]["containers"][0]
    assert container["resources"] == {"limits": {"nvidia.com/gpu": 2}}
    assert gpu["InferenceService"]["spec"]["predictor"]["model"]["resources"] == {"limits": {"nvidia.com/gpu": "2"}}
    devices = gpu["Compose"]["services"]["support-bot-v1"]["deploy"]["resources"]["reservations"]["devices"]
    assert devices == [{"driver": "nvidia", "count": 2, "capabilities": ["gpu"]}]


@pytest.mark.parametrize(("model", "label"), [("a.b_c", "a-b-c"), ("7b-bot", "model-7b-bot"), ("bot-", "bot")])
def test_a_model_name_becomes_a_name_that_kubernetes_takes(model: str, label: str) -> None:
    assert dns_label(model) == label
