"""What stages hand over: one small frozen record each, beside the files it describes.

File names inside an artifact's folder are properties of the record, so that no reader spells one a second time.
"""

from enum import StrEnum
from typing import ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field


class Record(BaseModel):
    """Base of everything that is written to disk between stages."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, protected_namespaces=())


class LengthSummary(Record):
    """Distribution of the conversations' lengths, in tokens."""

    p50: int
    p90: int
    p95: int
    p99: int
    max: int


class PreparedData(Record):
    """Tokenised rows with their loss masks, and what became of every row.

    `TRAIN`, `HELD_OUT` and `RETENTION` are Arrow streams, read with `datasets.Dataset.from_file`: rows of `PreparedRow`
    and `PreparedItem`. `PACKS` has one row per pack: `rows` are numbers of training rows, `seq_lengths` their tokens.
    """

    TRAIN: ClassVar = "train.arrow"
    HELD_OUT: ClassVar = "held_out.arrow"
    RETENTION: ClassVar = "retention.arrow"
    PACKS: ClassVar = "packs.arrow"
    TOKENIZER: ClassVar = "tokenizer"
    RECEIPT: ClassVar = "receipt.json"
    DROPPED: ClassVar = "dropped.jsonl"
    """Every row that was dropped: data set, row id, step, reason, note."""

    kind: Literal["conversation", "text", "preference", "unpaired_preference"]
    train_rows: int
    held_out_rows: int
    retention_rows: int
    train_tokens: int
    learned_tokens: int
    rejected_tokens: int = 0
    """Tokens of the pairs' worse conversations, which `train_tokens` leaves out."""
    longest_rejected_tokens: int = 0
    desirable_rows: int = 0
    """Training rows whose answer is wanted (kind `unpaired_preference`)."""
    packs: int
    lengths: LengthSummary
    stop_token_ids: tuple[int, ...]
    template_sha256: str
    receipt_sha256: str

    @property
    def sequences_per_row(self) -> int:
        """Texts that a row is: a pair is two."""
        return 2 if self.kind == "preference" else 1

    @property
    def mean_row_tokens(self) -> float:
        """Tokens of an average row, both answers of a pair."""
        return (self.train_tokens + self.rejected_tokens) / self.train_rows

    @property
    def longest_tokens(self) -> int:
        """Tokens of the longest text."""
        return max(self.lengths.max, self.longest_rejected_tokens)


class DerivedValue(Record):
    """A setting that the config left open: what was chosen, and why."""

    key: str
    value: str
    reason: str


class Estimate(Record):
    """A figure with its uncertainty."""

    low: float
    expected: float
    high: float


class Plan(Record):
    """What the training will take, and the settings derived for it."""

    device: str
    parameters: int
    trainable_parameters: int
    optimizer_steps: int
    micro_batch_rows: int
    accumulation_steps: int
    activation_checkpointing: bool
    activation_offloading: bool = False
    """Activations wait for the backward pass in the host's memory: never planned, the last rung of the ladder."""
    packing: bool
    memory_bytes: Estimate
    memory_limit_bytes: int
    memory_parts_bytes: dict[str, int]
    tokens_per_second: Estimate
    hours: Estimate
    usd: Estimate | None
    model_flops_per_token: float = 0.0
    """4N for an adapter (a frozen base needs no weight gradients), 6N for a full training; N: multiplied weights."""
    peak_flops_per_second: float | None = None
    """Of all devices together, as their vendor states it; None for a CPU, whose peak nobody states."""
    derived: tuple[DerivedValue, ...]


class Preflight(Record):
    """What a few real optimizer steps measured before the training began; every weight is as it was before them."""

    longest_steps: int
    """Steps on the longest micro-batch; fewer than 3 where a step takes long."""
    micro_batch_tokens: int
    """Tokens of the longest micro-batch, padding included."""
    seconds: float
    """What the preflight took."""
    peak_memory_bytes: int
    """Of the process (CPU) or of the fullest device (GPU)."""
    tokens_per_second: float
    """Over all devices, on the micro-batch nearest to the mean, padding left out."""
    hours: float
    """For the whole training."""
    usd: float | None
    """At the plan's price; None where it has none."""


class MemoryRung(Record):
    """A step of the out-of-memory ladder: the settings after it, and what made it necessary."""

    action: Literal["half the micro-batch", "activation checkpointing", "activation offloading"]
    micro_batch_divisor: int
    """The plan's micro-batch is divided by this, and its accumulation grows as much."""
    activation_checkpointing: bool
    activation_offloading: bool
    after_step: int
    """Optimizer steps that were done when memory ran out; 0 in the preflight or the first step."""
    cause: str


class ModuleCoverage(Record):
    """How many modules of one class of name were adapted, and how many of its parameters are quantised."""

    module: str
    adapted: int
    total: int
    parameters: int = 0
    """Weights of the class, adapters left out."""
    adapted_parameters: int = 0
    quantised_parameters: int = 0

    @property
    def adapted_share(self) -> float:
        """Share of the class's weights beside which something is trained."""
        return self.adapted_parameters / self.parameters if self.parameters else 0.0

    @property
    def quantised_share(self) -> float:
        """Share of the class's weights that are held in NF4."""
        return self.quantised_parameters / self.parameters if self.parameters else 0.0


class HeldOutPoint(Record):
    """The held-out loss at an optimizer step, in nats per learned token."""

    step: int
    loss: float


class HeldOut(Record):
    """What measuring the held-out loss while training led to."""

    first_loss: float
    best: HeldOutPoint
    last: HeldOutPoint
    weights_of_step: int
    """Optimizer step whose weights were handed on."""
    stopped_early: bool


class Adapter(Record):
    """What training made: a PEFT folder, or every weight when the method is `full`."""

    WEIGHTS: ClassVar = "weights"
    METRICS: ClassVar = "metrics.jsonl"
    CHECKPOINTS: ClassVar = "checkpoints"
    """What an interrupted training goes on from; deleted when it is done."""

    method: Literal["lora", "qlora", "full"]
    optimizer_steps: int
    train_tokens: int
    train_seconds: float
    first_loss: float
    last_loss: float
    resumed_from_step: int
    peak_memory_bytes: int
    trainable_parameters: int
    coverage: tuple[ModuleCoverage, ...]
    weights_sha256: str
    preflight: Preflight | None = None
    """Absent where not one step could be measured, because a loss or gradient was no number."""
    rungs: tuple[MemoryRung, ...] = ()
    """What running out of memory made of the plan, in order."""
    held_out: HeldOut | None = None
    """Absent where the config asks for no measurements."""


class Certificate(Record):
    """Proof, in figures, that the merged weights answer as the trained model does."""

    base: Literal["original", "dequantised", "none"]
    samples: int
    tokens: int
    mean_kl: float
    p99_kl: float
    top1_agreement: float
    trained_nll: float
    merged_nll: float
    original_base_nll: float | None
    """Loss of the other merge of a QLoRA adapter, on the base as it was before NF4."""
    pairs_used: int
    tensors_changed: int
    tensors_total: int
    weights_sha256: str
    limits: dict[str, float] = Field(default_factory=dict)
    """What the figures were held against, by field: the most that a KL, the least that an agreement may be; for
    `merged_nll` the most that it may differ from `trained_nll`, as a share of it."""


class MergedModel(Record):
    """Merged safetensors shards of at most 5 GB, tokenizer and generation config, in the layout that vLLM reads."""

    MODEL: ClassVar = "model"
    CERTIFICATE: ClassVar = "certificate.json"

    bytes: int
    shards: int
    dtype: str
    template_sha256: str
    stop_token_ids: tuple[int, ...]
    certificate: Certificate


class SuiteScore(Record):
    """One model on one suite."""

    model: str
    suite: str
    items: int
    metrics: dict[str, float]
    """Means over the items: `exact_match`, `json_validity`, `preference_accuracy`, `stopped`; `held_out_loss` in nats
    per answer token."""


class EvalReport(Record):
    """Every model's answers on the same items."""

    ITEMS: ClassVar = "items.jsonl"
    PROBES: ClassVar = "probes.jsonl"

    scores: tuple[SuiteScore, ...]
    champion_version: str | None
    seconds: float


class Outcome(StrEnum):
    """The gate's three answers."""

    PROMOTE = "PROMOTE"
    REJECT = "REJECT"
    INCONCLUSIVE = "INCONCLUSIVE"


class Check(Record):
    """One condition of the gate with its interval.

    `estimate`, `low` and `high` are a paired difference (candidate minus other), or a share for a one-sample check.
    """

    name: str
    question: str
    estimate: float
    low: float
    high: float
    bound: float
    items: int
    outcome: Outcome
    reason: str
    missing_items: int = 0
    """Items that would settle an INCONCLUSIVE check at the discordance seen."""


class Verdict(Record):
    """The promotion decision."""

    outcome: Outcome
    checks: tuple[Check, ...]
    reasons: tuple[str, ...]
    champion_version: str | None


class RegisteredModel(Record):
    """A version in the MLflow registry."""

    name: str
    version: str
    run_id: str
    model_id: str
    alias: str | None


class ServingImage(Record):
    """An OCI image: thin layout (our layers; the base's by digest), deployment files beside it."""

    LAYOUT: ClassVar = "layout"
    DEPLOY: ClassVar = "deploy"

    reference: str
    manifest_digest: str
    image_id: str
    base_name: str
    base_id: str
    weights_bytes: int
    own_layers: int


class Rung(Record):
    """One step of the verify ladder."""

    name: str
    passed: bool
    figure: str
    detail: str = ""


class SmokeReport(Record):
    """What the started image answered."""

    passed: bool
    rungs: tuple[Rung, ...]
    start_seconds: float
    total_seconds: float
    image_id: str


class Release(Record):
    """Where the aliases stand after the run."""

    champion_version: str | None
    previous_version: str | None
    moved: bool
    reason: str
