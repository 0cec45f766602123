"""From merged weights to an image that was started and questioned: OCI layers, smoke test, deployment files."""
