import itertools
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from planning_cases import LAPTOP, TINY, data_of, spec_of
from tiny_model import make_prepared, make_tiny_base

from tuneline.contracts.artifacts import Plan, PreparedData
from tuneline.contracts.errors import UserError
from tuneline.contracts.spec import RunSpec
from tuneline.contracts.spec_loading import load_spec
from tuneline.contracts.store import read_record
from tuneline.planning.cost import price_book
from tuneline.planning.hardware import GIB, Machine
from tuneline.planning.known_models import shape_of_known
from tuneline.planning.model_shape import shape_from_config
from tuneline.planning.plan import make_plan, optimizer_steps
from tuneline.planning.run import run

ROOT = Path(__file__).resolve().parents[1]
A100 = {"gpu": "A100-80GB"}
REAL_CONFIGS = ("smollm2-135m-lora", "qwen3-8b-lora-a100", "llama31-8b-qlora-a100", "llama33-70b-qlora-8xa100")
TINY_SHAPE = shape_from_config("tiny", TINY)


def plan_of(spec: RunSpec, data: PreparedData | None = None, machine: Machine = LAPTOP) -> Plan:
    return run(spec, None, data or data_of(), machine)


def derived(plan: Plan, key: str) -> str:
    return next(value.reason for value in plan.derived if value.key == key)


def refusal(spec: RunSpec, data: PreparedData | None = None) -> UserError:
    with pytest.raises(UserError) as caught:
        plan_of(spec, data)
    return caught.value


@pytest.mark.parametrize(("gpu", "gpus"), [("none", 1), ("A100-80GB", 1), ("H100", 4), ("A100-80GB", 8)])
def test_micro_batch_times_accumulation_times_gpus_is_the_effective_batch(gpu: str, gpus: int) -> None:
    for per_device, longest in itertools.product((1, 2, 3, 6, 7, 24, 32, 100), (64, 1024, 2048)):
        rows = per_device * gpus
        base = "HuggingFaceTB/SmolLM2-135M" if gpu == "none" else "Qwen/Qwen3-8B"
        spec = spec_of(base, training={"effective_batch_rows": rows}, budget={"gpu": gpu, "gpus": gpus})
        plan = plan_of(spec, data_of(mean=50, longest=longest))
        assert plan.micro_batch_rows * plan.accumulation_steps * gpus == rows
        assert plan.memory_bytes.high <= plan.memory_limit_bytes
        assert gpu == "none" or plan.micro_batch_rows.bit_count() == 1


def test_a_cpu_plan_of_a_tiny_model_takes_the_whole_batch_at_once_and_no_money() -> None:
    plan = make_plan(spec_of("tiny", training={"epochs": 4}), TINY_SHAPE, data_of(960, mean=60, longest=100), LAPTOP)
    assert (plan.device, plan.usd, plan.micro_batch_rows, plan.accumulation_steps) == ("cpu", None, 32, 1)
    assert not plan.activation_checkpointing and plan.packing
    assert plan.optimizer_steps == 120
    assert plan.hours.low < plan.hours.expected < plan.hours.high < 0.2
    assert plan.memory_bytes.high < 3 * GIB


def test_a_model_folder_is_planned_as_prepare_left_it(tmp_path: Path) -> None:
    base = make_tiny_base(tmp_path / "base")
    prepared = read_record(make_prepared(tmp_path / "prepared", base), PreparedData)
    plan = run(spec_of(str(base)), base, prepared, LAPTOP)
    assert plan.trainable_parameters == 16 * 2 * (2 * (64 + 64) + 2 * (64 + 32) + 3 * (64 + 128))
    assert plan.optimizer_steps == 3


def test_checkpointing_comes_on_only_when_one_row_does_not_fit_without() -> None:
    short, long = (plan_of(spec_of(budget=A100), data_of(longest=longest)) for longest in (2048, 16_384))
    assert (short.activation_checkpointing, long.activation_checkpointing) == (False, True)
    assert "fits without" in derived(short, "activation_checkpointing")
    assert "not even one row" in derived(long, "activation_checkpointing")
    stated = plan_of(spec_of(budget=A100, training={"activation_checkpointing": "on"}))
    assert stated.activation_checkpointing
    assert "activation_checkpointing" not in {value.key for value in stated.derived}


@pytest.mark.parametrize(
    ("model", "training", "budget", "packed"),
    [
        ({"attention": "flash_attention_2"}, {}, A100, True),
        ({"attention": "sdpa"}, {}, A100, False),
        ({"attention": "sdpa"}, {"packing": "on"}, A100, True),
        ({"attention": "flash_attention_2"}, {"packing": "off"}, A100, False),
        ({"base": "HuggingFaceTB/SmolLM2-135M"}, {}, {}, True),
        ({"base": "HuggingFaceTB/SmolLM2-135M"}, {"packing": "off"}, {}, False),
        ({"base": "HuggingFaceTB/SmolLM2-135M", "attention": "eager"}, {}, {}, False),
    ],
)
def test_packing_is_on_by_itself_where_attention_takes_joined_rows_one_by_one(
    model: dict[str, Any], training: dict[str, Any], budget: dict[str, Any], packed: bool
) -> None:
    assert plan_of(spec_of(model=model, training=training, budget=budget)).packing is packed


@pytest.mark.parametrize(
    ("training", "rows", "steps"),
    [
        ({"epochs": 1}, 100, 4),
        ({"epochs": 3}, 100, 10),
        ({"epochs": 0.5}, 100, 2),
        ({"epochs": 0.1, "effective_batch_rows": 1}, 30, 3),
        ({"epochs": 3, "max_optimizer_steps": 7}, 100, 7),
        ({"epochs": 1, "max_optimizer_steps": 7}, 100, 4),
    ],
)
def test_optimizer_steps_cover_the_epochs_and_keep_the_cap(training: dict[str, Any], rows: int, steps: int) -> None:
    assert optimizer_steps(spec_of(training=training).training, rows) == steps


def test_every_reason_to_refuse_comes_at_once() -> None:
    spec = spec_of(
        adapter={"target_modules": ["q_prj", "lm_head", "v_proj"]},
        training={"effective_batch_rows": 20_001, "fsdp": True},
        model={"attention": "flash_attention_2"},
        budget={"gpu": "T4", "max_usd": 1, "max_hours": 1},
    )
    problems = {(problem.where, problem.what) for problem in refusal(spec).problems}
    found = " / ".join(sorted(f"{where}: {what}" for where, what in problems))
    for expected in (
        r"adapter\.target_modules: `q_prj` matches no linear module",
        r"adapter\.target_modules: `lm_head` cannot be adapted",
        r"model\.dtype: the T4 has no bfloat16",
        r"model\.attention: flash_attention_2 does not run on the T4",
        r"training\.fsdp: FSDP has one device",
        r"training\.effective_batch_rows: one step takes 20,001 rows and the training data has 10,000",
        r"budget\.gpu: \d+\.\d GiB expected and 14\.6 GiB to be had on one T4",
        r"budget\.max_hours: \d+\.\d\d h expected, 1 h allowed",
        r"budget\.max_usd: no price is known for the T4",
    ):
        assert re.search(expected, found), expected
    assert len(problems) == 9


def test_a_misspelt_target_lists_what_the_model_has() -> None:
    (problem,) = refusal(spec_of(adapter={"target_modules": ["q_prj"]}, budget=A100)).problems
    available = "q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj, down_proj"
    assert problem.fix == f"did you mean `q_proj`? the model has {available}"


@pytest.mark.parametrize(
    ("sections", "data", "message"),
    [
        ({"training": {"micro_batch_rows": 5}}, data_of(), r"5 does not divide the 32 rows.*one of 1, 2, 4, 8, 16, 32"),
        ({"training": {"effective_batch_rows": 30}, "budget": {"gpu": "H100", "gpus": 4}}, data_of(), "use 28 or 32"),
        ({"budget": {"gpus": 2}}, data_of(), "2 GPUs of kind `none`"),
        ({"budget": A100}, data_of(longest=50_000), "longest row has 50,000 tokens"),
        ({"budget": A100}, data_of(rows=0), "no training rows are left"),
    ],
)
def test_a_request_that_cannot_be_met_names_its_fix(sections: dict[str, Any], data: PreparedData, message: str) -> None:
    assert re.search(message, str(refusal(spec_of(**sections), data)), re.DOTALL)


@pytest.mark.parametrize(
    "sections",
    [
        {"budget": {"gpu": "L4"}, "training": {"activation_checkpointing": "off"}},
        {"budget": A100, "adapter": {"method": "full"}},
        {"budget": A100, "training": {"micro_batch_rows": 32, "activation_checkpointing": "off"}},
        {"budget": {"gpu": "A100-80GB", "gpus": 8}, "model": {"base": "meta-llama/Llama-3.3-70B-Instruct"}},
    ],
)
def test_each_change_that_a_memory_refusal_advises_is_enough(sections: dict[str, Any]) -> None:
    spec = spec_of(**sections)
    (problem,) = refusal(spec).problems
    assert "missing" in problem.what
    advised = problem.fix.removeprefix("any one of these fits: ").split("; ")
    assert len(advised) >= 2
    for change in advised:
        document, data = spec.model_dump(), data_of()
        if change == "leave training.micro_batch_rows out":
            document["training"]["micro_batch_rows"] = None
        else:
            key, value = change.split(": ")
            section, name = key.split(".")
            document[section][name] = yaml.safe_load(value)
            data = data_of(longest=int(value)) if name == "max_length_tokens" else data
        plan = plan_of(RunSpec.model_validate(document), data)
        assert plan.memory_bytes.expected <= plan.memory_limit_bytes, change


def test_a_budget_that_is_exceeded_says_how_many_steps_it_pays_for() -> None:
    allowed = {"max_hours": 0.1, "max_usd": 0.2}
    problems = refusal(spec_of(budget=A100 | allowed)).problems
    assert [problem.where for problem in problems] == ["budget.max_hours", "budget.max_usd"]
    for problem in problems:
        match = re.search(r"max_optimizer_steps: (\d+) \(of 313\)", problem.fix)
        assert match
        kept = plan_of(spec_of(training={"max_optimizer_steps": int(match[1])}, budget=A100))
        limit = {"budget.max_hours": kept.hours.expected <= 0.1, "budget.max_usd": kept.usd.expected <= 0.2}  # type: ignore[union-attr]
        assert limit[problem.where]


def test_the_price_row_behind_the_money_is_recorded() -> None:
    plan = plan_of(spec_of(budget={"gpu": "A100-80GB", "gpus": 2}))
    rows = sorted(row.price_usd_per_hour for row in price_book() if row.gpu == "A100-80GB")
    assert rows == [1.39, 3.43, 3.67]
    assert plan.usd is not None
    assert plan.usd.expected == pytest.approx(plan.hours.expected * 2 * 3.43)
    assert plan.usd.low == pytest.approx(plan.hours.low * 2 * 1.39)
    assert plan.usd.high == pytest.approx(plan.hours.high * 2 * 3.67)
    assert "AWS p4de.24xlarge, on demand, as of 2026-11-09" in derived(plan, "price_usd_per_hour")


def test_a_gpu_without_a_price_is_planned_without_money() -> None:
    plan = plan_of(spec_of("HuggingFaceTB/SmolLM2-135M", model={"dtype": "float16"}, budget={"gpu": "T4"}))
    assert plan.usd is None
    assert "no row for the T4" in derived(plan, "price_usd_per_hour")


@pytest.mark.parametrize("name", REAL_CONFIGS)
def test_the_real_configs_are_planned_offline_within_their_budgets(name: str) -> None:
    spec = load_spec(ROOT / "configs" / f"{name}.yaml")
    rows = spec.data.max_train_rows or 10_000
    plan = plan_of(spec, data_of(rows, mean=spec.data.max_length_tokens // 3, longest=spec.data.max_length_tokens))
    assert plan.parameters == shape_of_known(spec.model.base).parameters
    assert plan.memory_bytes.high <= plan.memory_limit_bytes


def test_planning_loads_neither_torch_nor_transformers() -> None:
    code = "import sys, tuneline.planning.run; print({'torch', 'transformers', 'datasets'} & set(sys.modules))"
    shown = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True, timeout=60
    )
    assert shown.stdout.strip() == "set()"


def noted(plan: Plan) -> dict[str, str]:
    return {value.key: value.value for value in plan.derived}


def test_what_slows_a_training_is_noted_with_a_figure() -> None:
    training = {"activation_checkpointing": "on", "effective_batch_rows": 8}
    qlora = {"adapter": {"method": "qlora"}, "budget": A100, "training": training}
    slow = plan_of(spec_of(**qlora, model={"dtype": "float32"}), data_of(rows=64, mean=300, longest=1024))
    assert noted(slow)["padding"] == "18%"  # a staircase of 8 micro-batches up to 1024: 64 of 364
    assert noted(slow)["base_format"] == "float32"
    assert noted(slow)["needless_checkpointing"] == "30 %"
    short = plan_of(spec_of(adapter={"method": "qlora"}, budget=A100), data_of(rows=64, mean=100, longest=512))
    assert noted(short)["expanding_nf4"] == "3%"  # in float32, above, products take so long that it hardly shows
    quick = plan_of(spec_of(budget=A100, model={"attention": "flash_attention_2"}), data_of(mean=300, longest=2048))
    assert not {"padding", "expanding_nf4", "base_format", "needless_checkpointing", "threads"} & noted(quick).keys()
    assert noted(quick)["micro_batch_tokens"] == f"{quick.micro_batch_rows * 2048:,}"


def test_threads_are_shown_on_a_cpu_and_compiling_says_when_it_has_paid() -> None:
    tiny = {"training": {"compile": True, "effective_batch_rows": 32}}
    plan = make_plan(spec_of("tiny", **tiny), TINY_SHAPE, data_of(960, mean=60, longest=100), LAPTOP)
    assert noted(plan)["threads"] == "at most 2"
    step_seconds = 32 * 60 / plan.tokens_per_second.expected
    assert int(noted(plan)["compile_pays_after"].replace(",", "")) == pytest.approx(28 / 0.15 / step_seconds, abs=1)


def test_rows_are_not_joined_in_a_model_with_recurrent_layers() -> None:
    hybrid = shape_from_config("hybrid", {**TINY, "layer_types": ["linear_attention", "full_attention"] * 3})
    assert not hybrid.only_attends and TINY_SHAPE.only_attends
    assert not make_plan(spec_of("tiny"), hybrid, data_of(960, mean=60, longest=100), LAPTOP).packing
