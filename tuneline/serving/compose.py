"""The server as a Docker Compose project of one service."""

from tuneline.serving.deployment import ASK_TIMEOUT_SECONDS, START_BUDGET_SECONDS, Deployment, Document
from tuneline.serving.layers import SERVER_UID
from tuneline.serving.server_settings import ASK_FILE, HOME_DIR, PORT


def compose_project(deployment: Deployment) -> Document:
    """Describe the server for one machine: loopback only, read-only root, no capabilities."""
    service: Document = {
        "image": deployment.tag,
        "ports": [f"127.0.0.1:${{TUNELINE_SERVE_PORT:-{PORT}}}:{PORT}"],
        "shm_size": "1g",
        "read_only": True,
        "tmpfs": ["/tmp:exec,mode=1777", f"{HOME_DIR}:exec,uid={SERVER_UID},mode=0775"],
        "cap_drop": ["ALL"],
        "security_opt": ["no-new-privileges:true"],
        "stop_grace_period": f"{deployment.grace_seconds()}s",
        "restart": "unless-stopped",
        "healthcheck": {
            "test": ["CMD", "python3", ASK_FILE],
            "interval": "60s",
            "timeout": f"{ASK_TIMEOUT_SECONDS}s",
            "retries": 3,
            "start_period": f"{START_BUDGET_SECONDS}s",
        },
    }
    if deployment.gpus:
        devices = [{"driver": "nvidia", "count": deployment.gpus, "capabilities": ["gpu"]}]
        service["deploy"] = {"resources": {"reservations": {"devices": devices}}}
    return {"services": {deployment.name: service}}
