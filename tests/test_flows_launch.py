"""What `run_child` gives a stage and what it brings back, with real child processes."""

import contextlib
import logging
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from processes import PROGRAMS

from flows.launch import ProgressRelay, raise_for, run_child
from flows.process_tree import gpu_memory_holders
from tuneline.contracts.errors import ExitCode, Problem, StageFailed, UserError
from tuneline.contracts.jobs import OUTPUT, PROGRESS, RESULT, Job, JobResult, JobStatus, ProgressEvent
from tuneline.contracts.spec import RunSpec

GRACE_SECONDS = 1.0


@pytest.fixture(autouse=True)
def programs_importable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(PROGRAMS))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


def job_of(folder: Path, act: str, **options: str) -> Job:
    out_dir = folder / "out"
    out_dir.mkdir(parents=True, exist_ok=True)
    spec = RunSpec.model_validate({"name": "t", "model": {"base": "b"}, "data": {"train": "t.csv"}})
    return Job(stage="s", spec=spec, inputs={}, out_dir=out_dir, options={"act": act, **options})


def run(folder: Path, act: str, **options: str) -> JobResult:
    events: list[ProgressEvent] = []
    return run_child("stage_program", job_of(folder, act, **options), folder / "job", events.append, GRACE_SECONDS)


def test_every_event_is_relayed_once_and_in_order_up_to_the_last(tmp_path: Path) -> None:
    events: list[ProgressEvent] = []
    job = job_of(tmp_path, "count", events="3000")

    result = run_child("stage_program", job, tmp_path / "job", events.append, GRACE_SECONDS)

    assert result == JobResult(status=JobStatus.COMPLETED, artifact={"events": 3000})
    assert [event.done for event in events] == list(range(3000))


def test_a_handler_that_fails_neither_stops_the_stage_nor_floods_the_log(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(event: ProgressEvent) -> None:
        raise ConnectionError("server away") if event.done % 2 else ValueError("refused")

    with caplog.at_level(logging.WARNING, logger="flows.launch"):
        result = run_child(
            "stage_program", job_of(tmp_path, "count", events="50"), tmp_path / "job", fail, GRACE_SECONDS
        )

    assert result.status is JobStatus.COMPLETED
    assert sorted(record.getMessage().split(": ", 1)[1] for record in caplog.records) == [
        "ConnectionError: server away",
        "ValueError: refused",
    ]


def test_an_event_of_an_earlier_attempt_is_not_relayed_again(tmp_path: Path) -> None:
    run(tmp_path, "count", events="5")
    events: list[ProgressEvent] = []

    run_child("stage_program", job_of(tmp_path, "count", events="2"), tmp_path / "job", events.append, GRACE_SECONDS)

    assert len(events) == 2


def test_output_of_megabytes_goes_to_the_log_and_blocks_nobody(tmp_path: Path) -> None:
    result = run(tmp_path, "noise")

    assert result.status is JobStatus.COMPLETED
    assert (tmp_path / "job" / OUTPUT).stat().st_size == 20_000_000


@pytest.mark.parametrize(
    ("act", "detail"),
    [
        ("vanish", f"ended with exit status 0 but wrote no {RESULT}; its last output:\n    so long"),
        (
            "kill_itself",
            "ended by signal 9 (SIGKILL; often the kernel's out-of-memory killer); its last output:\n    allocating",
        ),
    ],
)
def test_a_stage_without_a_result_has_failed_whatever_its_exit_status(tmp_path: Path, act: str, detail: str) -> None:
    run(tmp_path, "count", events="1")  # its result must not be taken for the next one's

    assert run(tmp_path, act) == JobResult(status=JobStatus.FAILED, detail=detail)


def test_a_launcher_that_is_not_there_is_named(tmp_path: Path) -> None:
    job = job_of(tmp_path, "vanish")

    result = run_child("stage_program", job, tmp_path / "job", lambda event: None, launcher=["no-such-launcher"])

    assert result.status is JobStatus.FAILED
    assert "cannot start no-such-launcher: No such file or directory" in result.detail


def test_all_problems_of_a_wrong_input_come_back(tmp_path: Path) -> None:
    result = run(tmp_path, "wrong_input")

    with pytest.raises(UserError) as raised:
        raise_for(result, "s", tmp_path / "job" / OUTPUT)
    assert raised.value.problems == (
        Problem("row has no answer", "data.csv:3", "fill it"),
        Problem("row is empty", "data.csv:9"),
    )


def test_another_end_than_completion_is_a_failed_stage_with_its_log() -> None:
    preempted = JobResult(status=JobStatus.PREEMPTED, detail="told to stop")

    with pytest.raises(StageFailed, match=r"train preempted: told to stop\n    full log: /jobs/output.log") as raised:
        raise_for(preempted, "train", Path("/jobs/output.log"))
    assert raised.value.exit_code is ExitCode.PREEMPTED
    raise_for(JobResult(status=JobStatus.COMPLETED), "train", Path("/jobs/output.log"))


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path | None]:
    """Mount a file system of 1 MiB; None where that is not allowed."""
    mount = tmp_path / "disk"
    mount.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(mount)], capture_output=True)
    yield mount if mounted.returncode == 0 else None
    if mounted.returncode == 0:
        subprocess.run(["umount", "--lazy", str(mount)], check=True)


def test_a_full_disk_is_reported_even_when_the_report_lies_on_it(tmp_path: Path, small_disk: Path | None) -> None:
    result = run(small_disk, "fill_disk") if small_disk else run(tmp_path, "no_space")

    assert result.status is JobStatus.WRONG_INPUT
    assert result.problems[0].what == "the disk is full"
    assert result.problems[0].where == str((small_disk or tmp_path) / "out")


def test_a_disk_that_is_full_before_the_start_is_reported_too(small_disk: Path | None) -> None:
    if small_disk is None:
        pytest.skip("mounting is not allowed here")
    job = job_of(small_disk, "look")
    with contextlib.suppress(OSError), (small_disk / "filler").open("wb", buffering=0) as filler:
        while True:
            filler.write(b"\0" * 4096)

    with pytest.raises(UserError, match="the disk is full"):
        run_child("stage_program", job, small_disk / "job", lambda event: None, GRACE_SECONDS)


def environment_of(folder: Path, launcher: tuple[str, ...] = ()) -> dict[str, str]:
    job = job_of(folder, "environment")
    result = run_child("stage_program", job, folder / "job", lambda event: None, GRACE_SECONDS, launcher)
    assert result.status is JobStatus.COMPLETED, result.detail
    return dict(line.split("=", 1) for line in (folder / "job" / OUTPUT).read_text().splitlines())


def test_a_stage_gets_a_quiet_environment_and_the_settings_of_its_user(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.delenv("DO_NOT_TRACK", raising=False)

    environment = environment_of(tmp_path)

    assert environment["DO_NOT_TRACK"] == "1"
    assert environment["PYTHONUNBUFFERED"] == "1"
    assert environment["OMP_NUM_THREADS"] == "3"
    assert environment["HF_HUB_OFFLINE"] == "1"
    assert environment["stdin"] == "/dev/null"


def test_threads_default_to_the_free_cores_and_are_left_to_a_launcher(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS")

    assert 1 <= int(environment_of(tmp_path)["OMP_NUM_THREADS"]) <= len(os.sched_getaffinity(0))
    assert environment_of(tmp_path, launcher=("/usr/bin/env",))["OMP_NUM_THREADS"] == "None"


def test_the_working_folder_is_kept_and_hides_none_of_our_packages(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for package in ("flows", "tuneline", "stage_program"):
        (tmp_path / package).mkdir()
        (tmp_path / package / "__init__.py").write_text("raise RuntimeError('the wrong package')")
    monkeypatch.chdir(tmp_path)

    assert environment_of(Path("relative"))["cwd"] == str(tmp_path)


def test_a_process_that_a_finished_stage_leaves_behind_is_ended(tmp_path: Path) -> None:
    result = run(tmp_path, "leave_behind")

    assert result.status is JobStatus.COMPLETED
    assert not psutil.pid_exists(int((tmp_path / "out" / "left_pid").read_text()))


def test_a_line_that_is_half_written_waits_for_its_rest(tmp_path: Path) -> None:
    events: list[ProgressEvent] = []
    relay = ProgressRelay(tmp_path / PROGRESS, events.append)
    line = ProgressEvent(done=7, planned=9, unit="step").model_dump_json() + "\n"

    relay.forward()
    (tmp_path / PROGRESS).write_text(line + line[:20])
    relay.forward()
    assert len(events) == 1
    (tmp_path / PROGRESS).write_text(line + line)
    relay.forward()
    assert [event.done for event in events] == [7, 7]


def test_holders_of_gpu_memory_are_found_among_the_given_processes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nvidia_smi = tmp_path / "nvidia-smi"
    nvidia_smi.write_text("#!/bin/sh\nprintf '11, 512 MiB\\n12, [N/A]\\n13, 4096 MiB\\n'\n")
    nvidia_smi.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")

    assert gpu_memory_holders({12, 13, 99}) == {12: "[N/A]", 13: "4096 MiB"}

    nvidia_smi.write_text("#!/bin/sh\necho 'NVIDIA-SMI has failed' >&2\nexit 9\n")
    assert gpu_memory_holders({12}) is None
