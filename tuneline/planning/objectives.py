"""What an objective asks of a config, and what it costs beside a training pass."""

from collections.abc import Iterator, Mapping
from types import MappingProxyType

from tuneline.contracts.artifacts import PreparedData
from tuneline.contracts.errors import Problem
from tuneline.contracts.objectives import WITH_REFERENCE, Objective
from tuneline.contracts.spec import RunSpec

EXTRA_FORWARD_PASSES: Mapping[Objective, int] = MappingProxyType({"sft": 0, "orpo": 0, "dpo": 1, "kto": 3})
"""Forward passes without gradients beside each training pass: by the reference, and, for KTO, of each prompt with
another's answer by both models."""


def objective_problems(spec: RunSpec, data: PreparedData, objective: Objective) -> Iterator[Problem]:
    """List what in the config goes against the objective, or against what its rows can be asked."""
    training, name = spec.training, objective.upper()
    if objective != "sft" and training.packing == "on":
        what = f"{name} compares whole answers, and TRL's trainers take no packed rows"
        yield Problem(what, "training.packing", "set it to auto")
    if objective in WITH_REFERENCE:
        yield from _reference_problems(spec, name)
    if objective == "kto":
        yield from _unpaired_problems(spec, data)
    if data.kind == "text" and spec.evaluation.generate:
        fix = "set evaluation.generate to false and gate.metric to held_out_loss"
        yield Problem("plain texts hold no question whose answer could be scored", "evaluation.generate", fix)


def _reference_problems(spec: RunSpec, name: str) -> Iterator[Problem]:
    if spec.adapter.method != "full" and spec.adapter.initialisation == "pissa":
        what = f"{name} compares with the base, which PiSSA has moved into the adapter: it is not there with it off"
        yield Problem(what, "adapter.initialisation", "set it to zero, or training.objective to orpo")
    if spec.adapter.dropout > 0:
        what = f"{name} compares with the base, and TRL switches dropout off for that"
        yield Problem(what, "adapter.dropout", "set it to 0")


def _unpaired_problems(spec: RunSpec, data: PreparedData) -> Iterator[Problem]:
    if data.desirable_rows in (0, data.train_rows):
        what = f"{data.desirable_rows:,} of {data.train_rows:,} training rows are wanted: KTO needs both kinds"
        yield Problem(what, "data.train", "add rows of the other label")
    if spec.training.effective_batch_rows < 2:
        what = "KTO puts a prompt of a step beside another's answer, and one row has no other"
        yield Problem(what, "training.effective_batch_rows", "set it to 2 or more")
