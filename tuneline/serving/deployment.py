"""What a deployment file says of an image, and the times that hang together in it.

A pod gets `PRE_STOP_SECONDS` in which load balancers forget it, then vLLM's own drain, then a margin, and the grace
period is their sum. KServe's 15/45/60 leaves no margin, and the last requests die.
"""

from dataclasses import dataclass
from typing import Final

import yaml

from tuneline.contracts.spec import ServingSpec
from tuneline.serving.server_settings import EXIT_MARGIN_SECONDS

Document = dict[str, object]

PRE_STOP_SECONDS: Final = 15
START_BUDGET_SECONDS: Final = 1200
"""A 70B model loads and compiles for some ten minutes."""
ASK_PERIOD_SECONDS: Final = 10
ASK_TIMEOUT_SECONDS: Final = 65
"""Two requests of at most 30 s each, and Python's start."""


@dataclass(frozen=True)
class Deployment:
    """An image as a platform runs it."""

    model_name: str
    """Under which clients ask, and by which vLLM labels its metrics."""
    tag: str
    """Reference in this machine's engine."""
    digest: str
    """Of the image's manifest: what a registry that has the image answers to."""
    base_image: str
    """vLLM's own image below the model."""
    spec: ServingSpec
    gpus: int
    """GPUs of a replica; 0 for the CPU backend."""

    @property
    def name(self) -> str:
        """Name of the Kubernetes objects."""
        return dns_label(self.model_name)

    @property
    def by_digest(self) -> str:
        """Reference that can only ever mean this image."""
        return f"{self.tag.partition(':')[0]}@{self.digest}"

    @property
    def labels(self) -> dict[str, str]:
        """Labels that its pods carry and its selectors ask for."""
        return {"app.kubernetes.io/name": self.name, "app.kubernetes.io/part-of": "tuneline"}

    def metadata(self, suffix: str = "") -> Document:
        """Name and labels of an object."""
        return {"name": self.name + suffix, "labels": self.labels}

    def grace_seconds(self, pre_stop_seconds: int = 0) -> int:
        """Time from the order to stop until the kill: always more than what comes before it."""
        return pre_stop_seconds + self.spec.drain_seconds + EXIT_MARGIN_SECONDS


def dns_label(model_name: str) -> str:
    """Turn a model's name into what Kubernetes takes for a Service: letters, digits and dashes, a letter first."""
    name = model_name.replace(".", "-").replace("_", "-")
    return (name if name[0].isalpha() else f"model-{name}")[:63].rstrip("-")


class _Dumper(yaml.SafeDumper):
    """Writes a repeated part out instead of an anchor and a reference, which few who edit manifests know."""

    def ignore_aliases(self, data: object) -> bool:
        return True


def as_yaml(header: str, *documents: Document) -> str:
    """Write documents as one YAML stream below a comment."""
    comment = "".join(f"# {line}\n" for line in header.strip().splitlines())
    return comment + "---\n".join(yaml.dump(document, Dumper=_Dumper, sort_keys=False) for document in documents)
