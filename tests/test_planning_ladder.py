"""What the out-of-memory ladder decides; that it holds in a training is in test_flows_ladder.py."""

from itertools import pairwise

import pytest
from planning_cases import data_of, spec_of

from tuneline.contracts.artifacts import Estimate, Plan
from tuneline.contracts.ladder import Ladder, plan_on, read_ladder, write_ladder
from tuneline.contracts.spec import RunSpec
from tuneline.planning.ladder import exhausted, next_rung

NOTHING = Estimate(low=0.0, expected=0.0, high=0.0)


def plan_of(rows: int, accumulation: int, *, checkpointing: bool = False) -> Plan:
    return Plan(
        device="case",
        parameters=0,
        trainable_parameters=0,
        optimizer_steps=10,
        micro_batch_rows=rows,
        accumulation_steps=accumulation,
        activation_checkpointing=checkpointing,
        packing=False,
        memory_bytes=NOTHING,
        memory_limit_bytes=0,
        memory_parts_bytes={},
        tokens_per_second=NOTHING,
        hours=NOTHING,
        usd=None,
        derived=(),
    )


def climb(spec: RunSpec, plan: Plan) -> Ladder:
    """Climb until nothing is left."""
    ladder = Ladder()
    while rung := next_rung(spec, plan, ladder, after_step=3, cause="no memory"):
        ladder = Ladder(rungs=(*ladder.rungs, rung))
    return ladder


def stages(spec: RunSpec, plan: Plan) -> list[tuple[int, int, bool, bool]]:
    ladder = climb(spec, plan)
    stood = [plan_on(plan, Ladder(rungs=ladder.rungs[:count])) for count in range(len(ladder.rungs) + 1)]
    return [
        (now.micro_batch_rows, now.accumulation_steps, now.activation_checkpointing, now.activation_offloading)
        for now in stood
    ]


def test_a_gpu_halves_its_micro_batch_to_one_row_then_checkpoints_then_offloads() -> None:
    assert stages(spec_of(budget={"gpu": "H100"}), plan_of(8, 4)) == [
        (8, 4, False, False),
        (4, 8, False, False),
        (2, 16, False, False),
        (1, 32, False, False),
        (1, 32, True, False),
        (1, 32, True, True),
    ]


def test_a_cpu_has_no_other_memory_to_offload_to() -> None:
    assert stages(spec_of(), plan_of(2, 1)) == [(2, 1, False, False), (1, 2, False, False), (1, 2, True, False)]


@pytest.mark.parametrize(("rows", "accumulation"), [(12, 1), (7, 3), (10, 1), (1, 1), (6, 5)])
def test_every_rung_keeps_the_rows_of_an_optimizer_step_and_needs_no_more_than_the_one_before(
    rows: int, accumulation: int
) -> None:
    found = stages(spec_of(budget={"gpu": "H100"}), plan_of(rows, accumulation))
    assert {stage[0] * stage[1] for stage in found} == {rows * accumulation}
    assert all(later[0] <= earlier[0] // 2 or earlier[0] == 1 for earlier, later in pairwise(found))
    assert found[-1] == (1, rows * accumulation, True, True)


def test_checkpointing_that_the_config_switches_off_stays_off() -> None:
    spec = spec_of(budget={"gpu": "H100"}, training={"activation_checkpointing": "off"})
    assert stages(spec, plan_of(1, 8)) == [(1, 8, False, False), (1, 8, False, True)]
    said = exhausted(spec, plan_of(1, 8), data_of(longest=900), climb(spec, plan_of(1, 8)), after_step=5)
    assert "let training.activation_checkpointing be auto (it is off)" in said


def test_a_plan_that_checkpoints_already_has_no_rung_for_it() -> None:
    assert stages(spec_of(), plan_of(1, 8, checkpointing=True)) == [(1, 8, True, False)]


def test_when_nothing_is_left_the_words_name_every_try_with_its_step_and_what_to_change() -> None:
    spec = spec_of(adapter={"method": "full"})
    said = exhausted(spec, plan_of(2, 1), data_of(longest=900), climb(spec, plan_of(2, 1)), after_step=5)
    assert "micro-batches of 2 rows x 1 (after step 3)" in said
    assert "micro-batches of 1 row x 2, activation checkpointing (after step 5)" in said
    assert "900 tokens" in said
    assert "adapter.method to lora or qlora" in said


def test_a_ladder_survives_the_process_that_climbed_it(tmp_path) -> None:
    assert read_ladder(tmp_path) == Ladder()
    ladder = climb(spec_of(), plan_of(4, 1))
    write_ladder(tmp_path, ladder)
    assert read_ladder(tmp_path) == ladder
    assert len(ladder.rungs) == 3
    assert {rung.cause for rung in ladder.rungs} == {"no memory"}
