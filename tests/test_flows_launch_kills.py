"""The kill table: whatever is killed, and however, no process of a stage outlives the grace by more than 5 s.

Each test runs `programs/flow_program.py`, a flow in a process of its own. Its stage ignores SIGTERM and has two
children in sessions of their own that ignore it as well, one of them without a parent. All inherit a tag by which they
are found.
"""

import json
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
from processes import PROGRAMS, TAG, default_sigint, describe, eventually, find, kill_all, program_environment, tagged

GRACE_SECONDS = 1.0
LIMIT_SECONDS = GRACE_SECONDS + 5.0
START_SECONDS = 60.0
LAUNCHER = (sys.executable, str(PROGRAMS / "launcher_program.py"))


@dataclass(frozen=True)
class Flow:
    """A flow under test, its folder and its tag."""

    process: psutil.Popen
    folder: Path
    tag: str

    @property
    def guardian(self) -> psutil.Process:
        return find(self.tag, "flows.guardian")

    @property
    def command(self) -> psutil.Process:
        """The guardian's first child: the launcher when there is one, else the stage."""
        return next(child for child in self.guardian.children() if str(self.folder / "job") in child.cmdline())

    @property
    def ready(self) -> bool:
        return (self.folder / "ready").exists()

    @property
    def outcome(self) -> dict[str, object] | None:
        """What `run_child` returned or raised; None when the flow did not live to say."""
        path = self.folder / "outcome.json"
        return dict(json.loads(path.read_text())) if path.exists() else None

    def leaves_nobody_within(self, seconds: float) -> bool:
        return eventually(lambda: self.process.poll() is not None and not tagged(self.tag), seconds)


StartFlow = Callable[..., Flow]


@pytest.fixture
def start_flow(tmp_path: Path) -> Iterator[StartFlow]:
    tags = []

    def start(
        act: str, launcher: tuple[str, ...] = (), event_error: str = "none", grace_seconds: float = GRACE_SECONDS
    ) -> Flow:
        environment = program_environment()
        tags.append(environment[TAG])
        arguments = [act, str(tmp_path), str(grace_seconds), event_error, *launcher]
        with (tmp_path / f"flow-{len(tags)}.log").open("wb") as log:
            process = psutil.Popen(
                [sys.executable, str(PROGRAMS / "flow_program.py"), *arguments],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=environment,
                preexec_fn=default_sigint,
            )
        return Flow(process, tmp_path, environment[TAG])

    yield start
    for tag in tags:
        kill_all(tag)


def started(flow: Flow) -> Flow:
    assert eventually(lambda: flow.ready, START_SECONDS), describe(tagged(flow.tag))
    return flow


def cancel(flow: Flow) -> None:
    flow.process.send_signal(signal.SIGTERM)


def cancel_twice(flow: Flow) -> None:
    cancel(flow)
    assert eventually((flow.folder / "out" / "told").exists, LIMIT_SECONDS)
    cancel(flow)


def interrupt(flow: Flow) -> None:
    flow.process.send_signal(signal.SIGINT)


def kill_flow(flow: Flow) -> None:
    flow.process.kill()


def cancel_then_kill_flow(flow: Flow) -> None:
    cancel(flow)
    assert eventually((flow.folder / "out" / "told").exists, LIMIT_SECONDS)
    kill_flow(flow)


def kill_guardian(flow: Flow) -> None:
    flow.guardian.kill()


def kill_flow_and_guardian(flow: Flow) -> None:
    guardian = flow.guardian
    guardian.suspend()  # or it might still act between the two kills
    flow.process.kill()
    guardian.kill()


def kill_command(flow: Flow) -> None:
    flow.command.kill()


def kill_rank(flow: Flow) -> None:
    (rank,) = flow.command.children()
    rank.kill()


CANCELLED = {"raised": "Terminated"}


@pytest.mark.parametrize(
    ("kill", "launcher", "raised"),
    [
        (cancel, (), CANCELLED),
        (cancel, LAUNCHER, CANCELLED),
        (cancel_twice, (), CANCELLED),
        (interrupt, (), {"raised": "KeyboardInterrupt"}),
        (kill_flow, (), None),
        (kill_flow, LAUNCHER, None),
        (cancel_then_kill_flow, (), None),
    ],
)
def test_a_stage_ends_with_its_flow(
    start_flow: StartFlow, kill: Callable[[Flow], None], launcher: tuple[str, ...], raised: dict[str, object] | None
) -> None:
    flow = started(start_flow("stubborn", launcher))
    assert len(tagged(flow.tag)) == 5 + bool(launcher)

    kill(flow)

    assert flow.leaves_nobody_within(LIMIT_SECONDS), describe(tagged(flow.tag))
    assert flow.outcome == raised


@pytest.mark.parametrize(
    ("kill", "launcher", "detail"),
    [
        (kill_command, (), "ended by signal 9 (SIGKILL"),
        (kill_rank, LAUNCHER, "ended with exit status 247"),
        (kill_guardian, LAUNCHER, "the process that guards it was killed"),
    ],
)
def test_a_killed_part_of_a_stage_fails_it_and_leaves_nothing(
    start_flow: StartFlow, kill: Callable[[Flow], None], launcher: tuple[str, ...], detail: str
) -> None:
    flow = started(start_flow("stubborn", launcher))

    kill(flow)

    assert flow.leaves_nobody_within(LIMIT_SECONDS), describe(tagged(flow.tag))
    assert flow.outcome is not None
    assert flow.outcome["status"] == "failed"
    assert str(flow.outcome["detail"]).startswith(detail)


def test_an_interrupt_out_of_the_event_handler_ends_the_stage(start_flow: StartFlow) -> None:
    flow = started(start_flow("stubborn", event_error="raise"))

    assert flow.leaves_nobody_within(LIMIT_SECONDS), describe(tagged(flow.tag))
    assert flow.outcome == CANCELLED


def test_ranks_end_themselves_when_flow_and_guardian_are_killed_at_once(start_flow: StartFlow) -> None:
    flow = started(start_flow("deaf", LAUNCHER))

    kill_flow_and_guardian(flow)

    assert flow.leaves_nobody_within(LIMIT_SECONDS), describe(tagged(flow.tag))


def test_ranks_may_still_write_a_checkpoint_when_flow_and_guardian_are_killed_at_once(start_flow: StartFlow) -> None:
    flow = started(start_flow("checkpoint_on_sigterm", LAUNCHER, grace_seconds=20))

    kill_flow_and_guardian(flow)

    assert flow.leaves_nobody_within(20), describe(tagged(flow.tag))
    assert (flow.folder / "out" / "checkpoint").exists()


def test_ranks_of_a_killed_torchrun_leave_nothing(start_flow: StartFlow) -> None:
    pytest.importorskip("torch")
    torchrun = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "--no-python")
    flow = started(start_flow("stubborn", torchrun))
    assert eventually(lambda: len(tagged(flow.tag)) == 9, START_SECONDS), describe(tagged(flow.tag))

    kill_command(flow)

    assert flow.leaves_nobody_within(LIMIT_SECONDS), describe(tagged(flow.tag))
    assert flow.outcome is not None
    assert str(flow.outcome["detail"]).startswith("ended by signal 9")


@pytest.mark.parametrize("kill", [cancel, kill_flow])
def test_a_stage_has_the_grace_to_write_its_checkpoint(start_flow: StartFlow, kill: Callable[[Flow], None]) -> None:
    flow = started(start_flow("checkpoint_on_sigterm", grace_seconds=20))

    kill(flow)

    assert flow.leaves_nobody_within(20), describe(tagged(flow.tag))
    assert (flow.folder / "out" / "checkpoint").read_text() == "1 SIGTERM"


def test_a_service_manager_that_signals_the_guardian_preempts_the_stage(start_flow: StartFlow) -> None:
    flow = started(start_flow("checkpoint_on_sigterm", grace_seconds=20))

    flow.guardian.terminate()

    assert flow.leaves_nobody_within(20), describe(tagged(flow.tag))
    assert flow.outcome is not None
    assert (flow.outcome["status"], flow.outcome["steps_done"]) == ("preempted", 3)


def test_a_run_started_at_once_after_a_kill_waits_for_the_last_checkpoint(start_flow: StartFlow) -> None:
    first = started(start_flow("checkpoint_late", grace_seconds=20))
    first.process.kill()

    second = start_flow("look", grace_seconds=20)

    assert second.leaves_nobody_within(START_SECONDS), describe(tagged(second.tag))
    assert second.outcome is not None
    assert second.outcome["artifact"] == {"events": 1}
