"""Deployment files beside the image: one for Docker Compose, the rest for Kubernetes, each by digest."""

from collections.abc import Mapping
from pathlib import Path
from typing import Final

from tuneline.serving.compose import compose_project
from tuneline.serving.deployment import Deployment, Document, as_yaml
from tuneline.serving.kserve import inference_service
from tuneline.serving.kubernetes import (
    CLIENT_LABEL,
    disruption_budget,
    network_policy,
    pod_deployment,
    service,
)
from tuneline.serving.scaling import METRICS_USED, pod_autoscaler, pod_monitor, scaled_object

COMPOSE_FILE: Final = "compose.yaml"
KUBERNETES_FILE: Final = "kubernetes.yaml"

COMPOSE_HEADER: Final = (
    "docker compose -f compose.yaml up -d; TUNELINE_SERVE_PORT chooses the port of 127.0.0.1 (8000)."
)
KUSTOMIZATION_HEADER: Final = """
kubectl apply -k . after `newName` names the registry that has the image; the digest stays.
monitoring.yaml and one of scaling-*.yaml can be added to `resources` where the cluster knows their kinds.
"""
KUBERNETES_HEADER: Final = """
Deployment, address, disruption budget and network policy. Only pods that carry the label {label}: {name},
and the namespace `monitoring`, may connect: vLLM's --api-key leaves /metrics, /tokenize and more open.
"""
MONITORING_HEADER: Final = "Needs the Prometheus operator."
KEDA_HEADER: Final = """
Needs KEDA and a Prometheus that reads monitoring.yaml's metrics; `serverAddress` says where it is.
Instead of scaling-hpa.yaml, never beside it.
"""
HPA_HEADER: Final = """
Needs prometheus-adapter with a rule that serves {metric} as {served}.
Instead of scaling-keda.yaml, never beside it; it knows no limit on the time to the first token.
"""
KSERVE_HEADER: Final = """
Instead of kubernetes.yaml: KServe takes the weights out of the image (modelcars must be on in its ConfigMap
`inferenceservice-config`) and runs the base image's vLLM on them.
"""


def write_deployment_files(out_dir: Path, deployment: Deployment, weights_sha256: str) -> list[Path]:
    """Write the files of an image's deployment.

    Args:
        out_dir: folder to write in; made when absent.
        deployment: the image as a platform runs it.
        weights_sha256: identity of the merged weights, hex.

    Returns:
        The files.
    """
    out_dir.mkdir(parents=True, exist_ok=True)
    paths = []
    for name, text in _files(deployment, weights_sha256).items():
        paths.append(out_dir / name)
        paths[-1].write_text(text, encoding="utf-8")
    return paths


def _files(deployment: Deployment, weights_sha256: str) -> Mapping[str, str]:
    kubernetes = [part(deployment) for part in (pod_deployment, service, disruption_budget, network_policy)]
    header = KUBERNETES_HEADER.format(label=CLIENT_LABEL, name=deployment.name)
    waiting = METRICS_USED[0]
    hpa_header = HPA_HEADER.format(metric=waiting, served=waiting.replace(":", "_"))
    return {
        COMPOSE_FILE: as_yaml(COMPOSE_HEADER, compose_project(deployment)),
        KUBERNETES_FILE: as_yaml(header, *kubernetes),
        "kustomization.yaml": as_yaml(KUSTOMIZATION_HEADER, _kustomization(deployment)),
        "monitoring.yaml": as_yaml(MONITORING_HEADER, pod_monitor(deployment)),
        "scaling-keda.yaml": as_yaml(KEDA_HEADER, scaled_object(deployment)),
        "scaling-hpa.yaml": as_yaml(hpa_header, pod_autoscaler(deployment)),
        "kserve.yaml": as_yaml(KSERVE_HEADER, inference_service(deployment, weights_sha256)),
    }


def _kustomization(deployment: Deployment) -> Document:
    repository = deployment.tag.partition(":")[0]
    return {
        "apiVersion": "kustomize.config.k8s.io/v1beta1",
        "kind": "Kustomization",
        "resources": [KUBERNETES_FILE],
        "images": [{"name": repository, "newName": f"registry.example.com/{repository}", "digest": deployment.digest}],
    }
