"""Where a training stands on the out-of-memory ladder, kept beside its checkpoints: a resumed attempt stays there.

The flow decides on the next rung and writes it (`tuneline.planning.ladder`); the training reads it when it starts.
"""

from pathlib import Path

from tuneline.contracts.artifacts import Adapter, MemoryRung, Plan, Record
from tuneline.contracts.store import write_whole

FILE = "ladder.json"


class Ladder(Record):
    """The rungs that were climbed, in order."""

    rungs: tuple[MemoryRung, ...] = ()


def read_ladder(work: Path) -> Ladder:
    """Read how far a training's work folder has climbed; not at all where nothing is written."""
    try:
        return Ladder.model_validate_json((work / Adapter.CHECKPOINTS / FILE).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return Ladder()


def write_ladder(work: Path, ladder: Ladder) -> None:
    """Keep the rungs for the next attempt, whatever ends this one."""
    folder = work / Adapter.CHECKPOINTS
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(folder / FILE, ladder.model_dump_json(indent=1))


def plan_on(plan: Plan, ladder: Ladder) -> Plan:
    """Return the plan as its last rung changed it; rows of an optimizer step, and their order, stay the same."""
    if not ladder.rungs:
        return plan
    rung = ladder.rungs[-1]
    rows_per_step = plan.micro_batch_rows * plan.accumulation_steps
    micro_batch_rows = _largest_divisor(rows_per_step, plan.micro_batch_rows // rung.micro_batch_divisor)
    return plan.model_copy(
        update={
            "micro_batch_rows": micro_batch_rows,
            "accumulation_steps": rows_per_step // micro_batch_rows,
            "activation_checkpointing": rung.activation_checkpointing,
            "activation_offloading": rung.activation_offloading,
        }
    )


def _largest_divisor(number: int, most: int) -> int:
    return next(divisor for divisor in range(max(1, most), 0, -1) if number % divisor == 0)
