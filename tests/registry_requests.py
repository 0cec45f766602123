"""What a finished run hands to the registry, small and made up."""

from pathlib import Path

from tuneline.contracts.artifacts import Certificate, Outcome, Verdict
from tuneline.registry.lineage import Lineage
from tuneline.registry.versions import RegistrationRequest

CERTIFICATE = Certificate(
    base="original",
    samples=8,
    tokens=512,
    mean_kl=1e-6,
    p99_kl=2e-5,
    top1_agreement=0.999,
    trained_nll=1.25,
    merged_nll=1.25,
    original_base_nll=None,
    pairs_used=14,
    tensors_changed=14,
    tensors_total=29,
    weights_sha256="3e" * 32,
)


def registration(
    folder: Path, name: str, run_id: str, fingerprint: str = "f1", champion: str | None = None
) -> RegistrationRequest:
    """Write an adapter and a receipt below `folder` and ask for their registration."""
    adapter = folder / "weights"
    adapter.mkdir(exist_ok=True)
    (adapter / "adapter_config.json").write_text('{"r": 16}')
    (adapter / "adapter_model.safetensors").write_bytes(bytes(range(256)) * 40)
    (folder / "receipt.json").write_text('{"rows": 3}')
    verdict = Verdict(outcome=Outcome.PROMOTE, checks=(), reasons=("better by 4 points",), champion_version=champion)
    lineage = Lineage(
        fingerprint=fingerprint,
        run="demo-1",
        config_sha256="c0" * 32,
        data_receipt_sha256="da" * 32,
        base="tiny",
        base_revision=None,
        base_sha256="ba" * 32,
        adapter_sha256="ad" * 32,
        merged_sha256="3e" * 32,
        merged_fingerprint="0011223344556677",
        certificate=CERTIFICATE,
        verdict=verdict,
        git_commit="abc1234",
    )
    return RegistrationRequest(
        name=name,
        run_id=run_id,
        lineage=lineage,
        adapter=adapter,
        receipt=folder / "receipt.json",
        config_yaml="name: demo\n",
    )
