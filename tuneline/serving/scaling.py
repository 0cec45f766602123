"""More replicas under load: what Prometheus reads, and two ways to act on it, of which a cluster uses one.

Requests that wait are the measure. The cache's fill is none: with long prompts a server is saturated at a third of it.
A server may be slow with an empty queue, so a limit on the time to the first token stands beside it.
"""

from typing import Final

from tuneline.serving.deployment import Deployment, Document

METRICS_USED: Final = ("vllm:num_requests_waiting", "vllm:time_to_first_token_seconds")
"""The server's metrics that these files read; the ladder checks that it has them."""
WAITING_REQUESTS_PER_REPLICA: Final = 4
FIRST_TOKEN_P95_SECONDS: Final = 2.0
MAX_REPLICAS: Final = 4
SCALE_DOWN_WINDOW_SECONDS: Final = 600
"""A replica takes minutes to start: one that goes too early is missed for long."""
SCALE_UP_PERIOD_SECONDS: Final = 120
PROMETHEUS_URL: Final = "http://prometheus-operated.monitoring:9090"


def pod_monitor(deployment: Deployment) -> Document:
    """Have the Prometheus operator read every pod's metrics."""
    return {
        "apiVersion": "monitoring.coreos.com/v1",
        "kind": "PodMonitor",
        "metadata": deployment.metadata(),
        "spec": {
            "selector": {"matchLabels": deployment.labels},
            "podMetricsEndpoints": [{"port": "http", "path": "/metrics", "interval": "15s"}],
        },
    }


def scaled_object(deployment: Deployment) -> Document:
    """Scale with KEDA, on waiting requests and on the time to the first token; the larger answer counts."""
    waiting, first_token = METRICS_USED
    model = f'model_name="{deployment.model_name}"'
    p95 = f"histogram_quantile(0.95, sum by (le) (rate({first_token}_bucket{{{model}}}[2m])))"
    queries = (
        ("AverageValue", f"sum({waiting}{{{model}}})", f"{WAITING_REQUESTS_PER_REPLICA}"),
        # Without traffic the quantile is no number, which no comparison holds for: then it is 0.
        ("Value", f"({p95} > 0) or vector(0)", f"{FIRST_TOKEN_P95_SECONDS:g}"),
    )
    return {
        "apiVersion": "keda.sh/v1alpha1",
        "kind": "ScaledObject",
        "metadata": deployment.metadata(),
        "spec": {
            "scaleTargetRef": {"name": deployment.name},
            "minReplicaCount": 1,
            "maxReplicaCount": MAX_REPLICAS,
            "fallback": {"failureThreshold": 3, "replicas": 2, "behavior": "currentReplicasIfHigher"},
            "advanced": {"horizontalPodAutoscalerConfig": {"behavior": _behavior()}},
            "triggers": [
                {
                    "type": "prometheus",
                    "metricType": kind,
                    "metadata": {"serverAddress": PROMETHEUS_URL, "query": query, "threshold": threshold},
                }
                for kind, query, threshold in queries
            ],
        },
    }


def pod_autoscaler(deployment: Deployment) -> Document:
    """Scale with a HorizontalPodAutoscaler, on waiting requests, where prometheus-adapter serves them as a metric."""
    metric = {
        "type": "Pods",
        "pods": {
            "metric": {"name": METRICS_USED[0].replace(":", "_")},
            "target": {"type": "AverageValue", "averageValue": f"{WAITING_REQUESTS_PER_REPLICA}"},
        },
    }
    return {
        "apiVersion": "autoscaling/v2",
        "kind": "HorizontalPodAutoscaler",
        "metadata": deployment.metadata(),
        "spec": {
            "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": deployment.name},
            "minReplicas": 1,
            "maxReplicas": MAX_REPLICAS,
            "metrics": [metric],
            "behavior": _behavior(),
        },
    }


def _behavior() -> Document:
    one_at_a_time = {"type": "Pods", "value": 1, "periodSeconds": SCALE_UP_PERIOD_SECONDS}
    return {
        "scaleUp": {"policies": [one_at_a_time]},
        "scaleDown": {"stabilizationWindowSeconds": SCALE_DOWN_WINDOW_SECONDS, "policies": [one_at_a_time]},
    }
