"""The server on Kubernetes: its pods, their address, what may interrupt them, and who may talk to them."""

from tuneline.serving.deployment import (
    ASK_PERIOD_SECONDS,
    ASK_TIMEOUT_SECONDS,
    PRE_STOP_SECONDS,
    START_BUDGET_SECONDS,
    Deployment,
    Document,
)
from tuneline.serving.layers import SERVER_GID, SERVER_UID
from tuneline.serving.server_settings import ASK_FILE, HOME_DIR, PORT

CLIENT_LABEL = "tuneline.io/may-ask"
"""Pods that carry it, with the deployment's name as its value, may open a connection to the server."""
MONITORING_NAMESPACE = "monitoring"


def pod_deployment(deployment: Deployment) -> Document:
    """Describe a Deployment of one replica; a new pod serves before an old one goes."""
    pod: Document = {
        "automountServiceAccountToken": False,
        "terminationGracePeriodSeconds": deployment.grace_seconds(PRE_STOP_SECONDS),
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": SERVER_UID,
            "runAsGroup": SERVER_GID,
            "fsGroup": SERVER_GID,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "containers": [_container(deployment)],
        "volumes": [
            {"name": "tmp", "emptyDir": {}},
            {"name": "home", "emptyDir": {}},
            {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": "1Gi"}},
        ],
    }
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": deployment.metadata(),
        "spec": {
            "replicas": 1,
            "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": 0, "maxSurge": 1}},
            "selector": {"matchLabels": deployment.labels},
            "template": {"metadata": {"labels": deployment.labels}, "spec": pod},
        },
    }


def _container(deployment: Deployment) -> Document:
    # Start-up is over when the server has answered a question. After that /health is enough, and a question would be
    # wrong: under load it waits its turn, and a busy pod would be taken out of service.
    health = {"httpGet": {"path": "/health", "port": "http"}, "periodSeconds": ASK_PERIOD_SECONDS}
    container: Document = {
        "name": "vllm",
        "image": deployment.by_digest,
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
    if deployment.gpus:
        container["resources"] = {"limits": {"nvidia.com/gpu": deployment.gpus}}
    return container


def service(deployment: Deployment) -> Document:
    """Describe the address of the Deployment's pods."""
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": deployment.metadata(),
        "spec": {
            "selector": deployment.labels,
            "ports": [{"name": "http", "port": PORT, "targetPort": "http"}],
        },
    }


def disruption_budget(deployment: Deployment) -> Document:
    """Let a drain of nodes take one pod at a time.

    `minAvailable: 1` beside a single replica would hold up every node's maintenance for ever.
    """
    return {
        "apiVersion": "policy/v1",
        "kind": "PodDisruptionBudget",
        "metadata": deployment.metadata(),
        "spec": {
            "maxUnavailable": 1,
            "unhealthyPodEvictionPolicy": "AlwaysAllow",
            "selector": {"matchLabels": deployment.labels},
        },
    }


def network_policy(deployment: Deployment) -> Document:
    """Close the pod to all but labelled clients and the monitoring, and its way out altogether.

    vLLM's `--api-key` guards /v1, /v2 and /inference; /metrics, /tokenize, /invocations and more answer anyone who can
    connect. The server needs no connection of its own: the ladder starts it without a network.
    """
    monitoring = {"matchLabels": {"kubernetes.io/metadata.name": MONITORING_NAMESPACE}}
    clients = {"matchLabels": {CLIENT_LABEL: deployment.name}}
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": deployment.metadata(),
        "spec": {
            "podSelector": {"matchLabels": deployment.labels},
            "policyTypes": ["Ingress", "Egress"],
            "ingress": [
                {
                    "from": [
                        {"namespaceSelector": {}, "podSelector": clients},
                        {"namespaceSelector": monitoring},
                    ],
                    "ports": [{"protocol": "TCP", "port": "http"}],
                }
            ],
            "egress": [],
        },
    }
