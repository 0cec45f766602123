"""Where a model version comes from, as the tags that its MLflow version carries."""

import json
from dataclasses import dataclass
from enum import StrEnum

from tuneline.contracts.artifacts import Certificate, Verdict


class Tag(StrEnum):
    """Names of the tags of a model version."""

    FINGERPRINT = "tuneline.fingerprint"
    MODEL_ID = "tuneline.model_id"
    RUN = "tuneline.run"
    CONFIG = "tuneline.config_sha256"
    DATA_RECEIPT = "tuneline.data_receipt_sha256"
    BASE = "tuneline.base"
    BASE_REVISION = "tuneline.base_revision"
    BASE_SHA256 = "tuneline.base_sha256"
    ADAPTER = "tuneline.adapter_sha256"
    MERGED = "tuneline.merged_sha256"
    MERGED_FINGERPRINT = "tuneline.merged_fingerprint"
    CERTIFICATE = "tuneline.certificate"
    VERDICT = "tuneline.verdict"
    VERDICT_REASONS = "tuneline.verdict_reasons"
    GIT_COMMIT = "tuneline.git_commit"
    COMPARED_CHAMPION = "tuneline.compared_champion"
    IMAGE_DIGEST = "tuneline.image_digest"
    IMAGE_REFERENCE = "tuneline.image_reference"
    SMOKE = "tuneline.smoke"
    REPORT = "tuneline.report"


@dataclass(frozen=True)
class Lineage:
    """Everything that a registered version was made from, by digest, and why it may or may not be promoted."""

    fingerprint: str
    """Identity of the version: registering it again finds it."""
    run: str
    config_sha256: str
    data_receipt_sha256: str
    base: str
    base_revision: str | None
    base_sha256: str
    adapter_sha256: str
    merged_sha256: str
    merged_fingerprint: str
    """Where the merged weights are in the artifact store; MLflow does not hold them."""
    certificate: Certificate
    verdict: Verdict
    git_commit: str | None

    @property
    def compared_champion(self) -> str | None:
        """The champion version that the verdict is about."""
        return self.verdict.champion_version

    def tags(self) -> dict[str, str]:
        """Write the lineage as tags; what is not known has none."""
        tags = {
            Tag.FINGERPRINT: self.fingerprint,
            Tag.RUN: self.run,
            Tag.CONFIG: self.config_sha256,
            Tag.DATA_RECEIPT: self.data_receipt_sha256,
            Tag.BASE: self.base,
            Tag.BASE_REVISION: self.base_revision,
            Tag.BASE_SHA256: self.base_sha256,
            Tag.ADAPTER: self.adapter_sha256,
            Tag.MERGED: self.merged_sha256,
            Tag.MERGED_FINGERPRINT: self.merged_fingerprint,
            Tag.CERTIFICATE: _certificate_in_short(self.certificate),
            Tag.VERDICT: self.verdict.outcome.value,
            Tag.VERDICT_REASONS: "; ".join(self.verdict.reasons) or None,
            Tag.GIT_COMMIT: self.git_commit,
            Tag.COMPARED_CHAMPION: self.compared_champion,
        }
        return {tag.value: value for tag, value in tags.items() if value is not None}


def _certificate_in_short(certificate: Certificate) -> str:
    figures = certificate.model_dump(include={"base", "mean_kl", "p99_kl", "top1_agreement", "samples", "tokens"})
    return json.dumps(figures, sort_keys=True)
