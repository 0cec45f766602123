"""Deployment files beside the image: Docker Compose, and Kubernetes (Deployment and Service).

Their times hang together: a pod gets `PRE_STOP_SECONDS` in which load balancers forget it, then vLLM's own drain, then
a margin, and the grace period is their sum. KServe's 15/45/60 leaves no margin, and the last requests die.
"""

from pathlib import Path
from typing import Final

import yaml

from tuneline.contracts.spec import ServingSpec
from tuneline.serving.layers import SERVER_GID, SERVER_UID
from tuneline.serving.server_settings import ASK_FILE, EXIT_MARGIN_SECONDS, HOME_DIR, PORT

PRE_STOP_SECONDS: Final = 15
START_BUDGET_SECONDS: Final = 1200
"""A 70B model loads and compiles for some ten minutes."""
ASK_PERIOD_SECONDS: Final = 10
ASK_TIMEOUT_SECONDS: Final = 65
"""Two requests of at most 30 s each, and Python's start."""
COMPOSE_FILE: Final = "compose.yaml"
KUBERNETES_FILE: Final = "kubernetes.yaml"
COMPOSE_HEADER: Final = (
    "# docker compose -f compose.yaml up -d; TUNELINE_SERVE_PORT chooses the port of 127.0.0.1 (8000).\n"
)
KUBERNETES_HEADER: Final = """\
# Push the image to your registry and write its reference there, by digest, into `image:` below.
# vLLM's --api-key guards /v1, /v2 and /inference only: keep /metrics, /tokenize and the rest behind a network policy.
"""

Document = dict[str, object]


def write_deployment_files(
    out_dir: Path, reference: str, model_name: str, spec: ServingSpec, gpus: int
) -> tuple[Path, Path]:
    """Write the Compose and the Kubernetes file of an image.

    Args:
        out_dir: folder to write in; made when absent.
        reference: the image as a deployment names it.
        model_name: the served name; also names the deployment.
        spec: the config's serving section.
        gpus: GPUs of a replica; 0 for the CPU backend.

    Returns:
        The two files.
    """
    out_dir.mkdir(parents=True, exist_ok=True)
    name = dns_label(model_name)
    compose, kubernetes = out_dir / COMPOSE_FILE, out_dir / KUBERNETES_FILE
    compose.write_text(COMPOSE_HEADER + _dump(compose_service(reference, name, spec, gpus)), encoding="utf-8")
    documents = [kubernetes_deployment(reference, name, spec, gpus), kubernetes_service(name)]
    kubernetes.write_text(KUBERNETES_HEADER + "---\n".join(map(_dump, documents)), encoding="utf-8")
    return compose, kubernetes


def grace_seconds(spec: ServingSpec, pre_stop_seconds: int = 0) -> int:
    """Time from the order to stop until the kill: always more than what comes before it."""
    return pre_stop_seconds + spec.drain_seconds + EXIT_MARGIN_SECONDS


def compose_service(reference: str, name: str, spec: ServingSpec, gpus: int) -> Document:
    """Describe the server as a Compose project of one service."""
    service: Document = {
        "image": reference,
        "ports": [f"127.0.0.1:${{TUNELINE_SERVE_PORT:-{PORT}}}:{PORT}"],
        "shm_size": "1g",
        "read_only": True,
        "tmpfs": ["/tmp:exec,mode=1777", f"{HOME_DIR}:exec,uid={SERVER_UID},mode=0775"],
        "cap_drop": ["ALL"],
        "security_opt": ["no-new-privileges:true"],
        "stop_grace_period": f"{grace_seconds(spec)}s",
        "restart": "unless-stopped",
        "healthcheck": {
            "test": ["CMD", "python3", ASK_FILE],
            "interval": "60s",
            "timeout": f"{ASK_TIMEOUT_SECONDS}s",
            "retries": 3,
            "start_period": f"{START_BUDGET_SECONDS}s",
        },
    }
    if gpus:
        devices = [{"driver": "nvidia", "count": gpus, "capabilities": ["gpu"]}]
        service["deploy"] = {"resources": {"reservations": {"devices": devices}}}
    return {"services": {name: service}}


def kubernetes_deployment(reference: str, name: str, spec: ServingSpec, gpus: int) -> Document:
    """Describe the server as a Deployment of one replica; a new pod serves before an old one goes."""
    labels = {"app.kubernetes.io/name": name, "app.kubernetes.io/part-of": "tuneline"}
    pod: Document = {
        "terminationGracePeriodSeconds": grace_seconds(spec, PRE_STOP_SECONDS),
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": SERVER_UID,
            "runAsGroup": SERVER_GID,
            "fsGroup": SERVER_GID,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "containers": [_container(reference, gpus)],
        "volumes": [
            {"name": "tmp", "emptyDir": {}},
            {"name": "home", "emptyDir": {}},
            {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": "1Gi"}},
        ],
    }
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": name, "labels": labels},
        "spec": {
            "replicas": 1,
            "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": 0, "maxSurge": 1}},
            "selector": {"matchLabels": labels},
            "template": {"metadata": {"labels": labels}, "spec": pod},
        },
    }


def dns_label(model_name: str) -> str:
    """Turn a model's name into what Kubernetes takes for a Service: letters, digits and dashes, a letter first."""
    name = model_name.replace(".", "-").replace("_", "-")
    return (name if name[0].isalpha() else f"model-{name}")[:63].rstrip("-")


def _container(reference: str, gpus: int) -> Document:
    # Start-up is over when the server has answered a question. After that /health is enough, and a question would be
    # wrong: under load it waits its turn, and a busy pod would be taken out of service.
    health = {"httpGet": {"path": "/health", "port": "http"}, "periodSeconds": ASK_PERIOD_SECONDS}
    container: Document = {
        "name": "vllm",
        "image": reference,
        "ports": [{"name": "http", "containerPort": PORT}],
        "startupProbe": {
            "exec": {"command": ["python3", ASK_FILE]},
            "periodSeconds": ASK_PERIOD_SECONDS,
            "timeoutSeconds": ASK_TIMEOUT_SECONDS,
            "failureThreshold": START_BUDGET_SECONDS // ASK_PERIOD_SECONDS,
        },
        "readinessProbe": health,
        "livenessProbe": health | {"failureThreshold": 6},
        "lifecycle": {"preStop": {"exec": {"command": ["sleep", str(PRE_STOP_SECONDS)]}}},
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
            "readOnlyRootFilesystem": True,
        },
        "volumeMounts": [
            {"name": "tmp", "mountPath": "/tmp"},
            {"name": "home", "mountPath": HOME_DIR},
            {"name": "shm", "mountPath": "/dev/shm"},
        ],
    }
    if gpus:
        container["resources"] = {"limits": {"nvidia.com/gpu": gpus}}
    return container


def kubernetes_service(name: str) -> Document:
    """Describe the address of the Deployment's pods."""
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": name, "labels": {"app.kubernetes.io/name": name}},
        "spec": {
            "selector": {"app.kubernetes.io/name": name},
            "ports": [{"name": "http", "port": PORT, "targetPort": "http"}],
        },
    }


class _Dumper(yaml.SafeDumper):
    """Writes a repeated part out instead of an anchor and a reference, which few who edit manifests know."""

    def ignore_aliases(self, data: object) -> bool:
        return True


def _dump(document: Document) -> str:
    return yaml.dump(document, Dumper=_Dumper, sort_keys=False)
