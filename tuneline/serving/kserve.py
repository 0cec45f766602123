"""The same image under KServe, as a modelcar: the weights come out of the image, vLLM is the pinned base's."""

from tuneline.serving.deployment import PRE_STOP_SECONDS, Deployment, Document
from tuneline.serving.server_settings import server_environment, vllm_arguments

MOUNTED_MODEL = "/mnt/models"
"""Where KServe shows a container the modelcar's `/models`."""


def inference_service(deployment: Deployment, weights_sha256: str) -> Document:
    """Describe an InferenceService whose weights are this image's and whose server is the base image's vLLM."""
    environment = server_environment(deployment.spec)
    model: Document = {
        "modelFormat": {"name": "huggingface"},
        "storageUri": f"oci://{deployment.by_digest}",
        "image": deployment.base_image,
        "args": vllm_arguments(deployment.spec, deployment.model_name, weights_sha256, MOUNTED_MODEL),
        "env": [{"name": name, "value": value} for name, value in sorted(environment.items())],
    }
    if deployment.gpus:
        model["resources"] = {"limits": {"nvidia.com/gpu": str(deployment.gpus)}}
    return {
        "apiVersion": "serving.kserve.io/v1beta1",
        "kind": "InferenceService",
        "metadata": {
            **deployment.metadata(),
            "annotations": {"serving.kserve.io/deploymentMode": "Standard"},
        },
        "spec": {
            "predictor": {
                "minReplicas": 1,
                "terminationGracePeriodSeconds": deployment.grace_seconds(PRE_STOP_SECONDS),
                "model": model,
            }
        },
    }
