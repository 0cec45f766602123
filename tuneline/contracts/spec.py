"""Everything one YAML may say: closed, frozen, and documented under each field.

One file is one run. An unknown key is an error, every default stands here and nowhere else, and units are in the names.
Where a run happens (store, URLs, credentials) is `settings`, never here: two machines given the same file ask for the
same thing. `tests/test_contracts_spec.py` keeps the number of fields at 100 or fewer.
"""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from tuneline.contracts.adapter_spec import AdapterSpec
from tuneline.contracts.data_spec import DataSpec
from tuneline.contracts.section import Name, Section, Share

MAX_LEARNING_RATE = 0.1


class ModelSpec(Section):
    """The base model."""

    base: str
    """Folder of the base model, or its name on the Hub (`Qwen/Qwen3-8B`)."""
    revision: str | None = None
    """Hub commit or tag; a run from the Hub should always name one."""
    dtype: Literal["bfloat16", "float32", "float16"] = "bfloat16"
    """Number format of the frozen base and of the merged weights."""
    chat_template: str | None = None
    """File with a Jinja chat template that replaces the tokenizer's own; it travels with the model to the server."""
    attention: Literal["sdpa", "flash_attention_2", "eager"] = "sdpa"
    """Attention kernel in training; `flash_attention_2` needs a GPU and makes packing pay."""


class TrainingSpec(Section):
    """How it is trained."""

    objective: Literal["auto", "sft", "dpo", "orpo", "kto"] = "auto"
    """`auto` follows the rows: `sft` for conversations and text, `dpo` for preference pairs, `kto` for single ones."""
    preference_beta: Annotated[float, Field(gt=0)] = 0.1
    """How strongly `dpo` and `kto` hold the model to the base, and `orpo`'s weight of the odds ratio."""
    epochs: Annotated[float, Field(gt=0)] = 1.0
    """Passes over the training rows."""
    max_optimizer_steps: Annotated[int, Field(ge=1)] | None = None
    """Stop after this many optimizer steps, whatever `epochs` says."""
    effective_batch_rows: Annotated[int, Field(ge=1)] = 32
    """Rows per optimizer step, over all devices and accumulation."""
    micro_batch_rows: Annotated[int, Field(ge=1)] | None = None
    """Rows of the longest length that a forward pass holds on a device, and more of shorter ones; else derived."""
    learning_rate: Annotated[float, Field(gt=0, le=MAX_LEARNING_RATE)] = 2e-4
    """Peak learning rate; 2e-4 is usual for an adapter of a large model, 2e-5 for `full`."""
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    """Decay after warm-up."""
    warmup_share: Share = 0.03
    """Share of the optimizer steps that warm up."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    """Decoupled weight decay."""
    max_grad_norm: Annotated[float, Field(gt=0)] = 1.0
    """Gradients are clipped to this norm."""
    activation_checkpointing: Literal["auto", "on", "off"] = "auto"
    """Recompute activations in the backward pass: less memory, about 30 % more time."""
    packing: Literal["auto", "on", "off"] = "auto"
    """Rows of a micro-batch are joined, without padding; `auto` does so where attention takes them one by one."""
    fsdp: bool = False
    """Shard weights, gradients and optimizer over the GPUs of `budget.gpus`."""
    compile: bool = False
    """Compile the model with torch: the plan says after how many steps that has paid."""
    checkpoint_every_optimizer_steps: Annotated[int, Field(ge=1)] = 100
    """Distance between checkpoints."""
    keep_checkpoints: Annotated[int, Field(ge=1)] = 2
    """Whole checkpoints that stay on disk."""
    held_out_loss_every_optimizer_steps: Annotated[int, Field(ge=1)] | None = None
    """Distance between measurements of the held-out loss while training; none are made when absent."""
    early_stopping_patience: Annotated[int, Field(ge=1)] | None = None
    """Stop after so many measurements of the held-out loss without a new best one."""
    weights: Literal["last", "best"] = "last"
    """Which weights the training hands on: of its last step, or of the lowest held-out loss."""
    watchdogs: Literal["stop", "warn"] = "stop"
    """What a loss spike or an exploding gradient norm does; a loss that is no number always stops."""
    log_every_optimizer_steps: Annotated[int, Field(ge=1)] = 10
    """Distance between logged metrics."""
    seed: int = 17
    """Seed of adapter initialisation, order and dropout."""

    @model_validator(mode="after")
    def _needs_the_held_out_loss(self) -> Self:
        asked = self.early_stopping_patience is not None or self.weights == "best"
        if asked and self.held_out_loss_every_optimizer_steps is None:
            raise ValueError(
                "early_stopping_patience and weights: best go by the held-out loss: set "
                "training.held_out_loss_every_optimizer_steps"
            )
        return self


class EvaluationSpec(Section):
    """What is asked of base, candidate and champion."""

    metrics: tuple[Literal["exact_match", "json_validity"], ...] = ("exact_match",)
    """Scores of generated answers; the held-out loss is always measured."""
    max_new_tokens: Annotated[int, Field(ge=1)] = 128
    """Longest generated answer."""
    max_items: Annotated[int, Field(ge=1)] | None = None
    """Ask at most this many items of each suite, drawn with `data.seed`; all when absent."""
    generate: bool = True
    """`false` measures only the held-out loss, for tasks that an answer's text cannot score."""


class GateSpec(Section):
    """When a model may be promoted, written down before the result is known."""

    metric: Literal["exact_match", "json_validity", "held_out_loss"] = "exact_match"
    """The metric on which the candidate must be better than base and champion."""
    min_improvement: Annotated[float, Field(ge=0)] = 0.0
    """The lower end of the paired interval must exceed this (points as a share; nats per token for the loss)."""
    retention_margin: Share = 0.05
    """How much the retention suite may lose and still count as held."""
    min_json_validity: Share | None = None
    """Least share of candidate answers that parse as JSON, tested by the lower end of its interval."""
    confidence: Annotated[float, Field(gt=0.5, lt=1.0)] = 0.95
    """Confidence of every interval."""


class RegistrySpec(Section):
    """Under which names the result is kept."""

    model: Name | None = None
    """Registered model; the run's name when absent."""
    experiment: str = "tuneline"
    """MLflow experiment of the run."""


class ServingSpec(Section):
    """The image, and vLLM's settings inside it."""

    base_image: str = "vllm/vllm-openai:v0.32.0"
    """Image that the model's layers are put on."""
    max_model_len: Annotated[int, Field(ge=8)] | None = None
    """Longest prompt plus answer, in tokens; the base model's own limit when absent."""
    dtype: Literal["auto", "bfloat16", "float16", "float32"] = "auto"
    """Number format while serving."""
    max_num_seqs: Annotated[int, Field(ge=1)] = 64
    """Requests in one batch."""
    gpu_memory_utilization: Annotated[float, Field(gt=0, le=1)] = 0.92
    """Share of the GPU's memory that vLLM takes."""
    enforce_eager: bool = False
    """Skip compilation: slower answers, faster start."""
    drain_seconds: Annotated[int, Field(ge=0)] = 45
    """Time that requests in flight get when the container is stopped (vLLM's own default is 0: they are aborted)."""
    probes: Annotated[int, Field(ge=1)] = 8
    """Held-out conversations that the started image is questioned with."""


class BudgetSpec(Section):
    """What the run may use; a plan beyond it is refused."""

    gpu: Literal["none", "T4", "L4", "A10G", "A100-40GB", "A100-80GB", "H100", "H200"] = "none"
    """GPU to plan for; `none` plans for this machine's CPU."""
    gpus: Annotated[int, Field(ge=1, le=64)] = 1
    """Number of GPUs."""
    max_hours: Annotated[float, Field(gt=0)] | None = None
    """Refuse a plan that is expected to train longer."""
    max_usd: Annotated[float, Field(gt=0)] | None = None
    """Refuse a plan that is expected to cost more."""
    max_memory_gib: Annotated[float, Field(gt=0)] | None = None
    """Memory per device; the GPU's (or this machine's) own when absent."""


class RunSpec(Section):
    """One run, from data to a served model."""

    name: Name
    """Name of the run and, unless `registry.model` says otherwise, of the model."""
    model: ModelSpec
    data: DataSpec
    adapter: AdapterSpec = AdapterSpec()
    training: TrainingSpec = TrainingSpec()
    evaluation: EvaluationSpec = EvaluationSpec()
    gate: GateSpec = GateSpec()
    registry: RegistrySpec = RegistrySpec()
    serving: ServingSpec = ServingSpec()
    budget: BudgetSpec = BudgetSpec()

    @property
    def model_name(self) -> str:
        """Name of the registered model."""
        return self.registry.model or self.name

    @model_validator(mode="after")
    def _cross_check(self) -> Self:
        if self.gate.metric not in ("held_out_loss", *self.evaluation.metrics):
            raise ValueError(f"gate.metric is {self.gate.metric}, so evaluation.metrics must name it")
        if self.gate.metric != "held_out_loss" and not self.evaluation.generate:
            raise ValueError("evaluation.generate is false, so gate.metric must be held_out_loss")
        answered = self.evaluation.metrics if self.evaluation.generate else ()
        if self.gate.min_json_validity is not None and "json_validity" not in answered:
            raise ValueError("gate.min_json_validity needs evaluation.generate and json_validity in evaluation.metrics")
        if self.data.retention is not None and "exact_match" not in answered:
            raise ValueError("data.retention needs evaluation.generate and exact_match in evaluation.metrics")
        up_rate = self.training.learning_rate * (self.adapter.lora_plus_ratio or 1.0)
        if up_rate > MAX_LEARNING_RATE:
            raise ValueError(
                f"adapter.lora_plus_ratio makes the up factors' learning rate {up_rate:g}, above {MAX_LEARNING_RATE}: "
                "lower training.learning_rate, as LoRA+ wants it"
            )
        if self.adapter.initialisation == "pissa" and self.training.weight_decay > 0:
            raise ValueError("training.weight_decay would pull PiSSA's factors, which hold the base's largest, to 0")
        if self.adapter.method == "qlora" and self.training.fsdp and self.model.dtype == "float16":
            raise ValueError("QLoRA under FSDP stores NF4 in the base's dtype: use model.dtype bfloat16")
        return self
