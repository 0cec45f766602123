import pytest
import torch
from click.testing import CliRunner
from tiny_model import make_job

from training import nodes
from training.agent import Place, StopRequest, World
from training.launch import lacks, processes_of
from training.nodes import SILENT_SECONDS, _attempts, _end_of, _Watch, join, newest_step
from tuneline.cli.main import main
from tuneline.contracts.errors import ExitCode, Problem, UserError
from tuneline.contracts.jobs import JOB, RESULT, JobResult, JobStatus
from tuneline.contracts.settings import Endpoint, Settings, processes_per_node


def write_job(folder, job):
    folder.mkdir(exist_ok=True)
    (folder / JOB).write_text(job.model_dump_json())
    return folder


def test_only_a_training_on_several_gpus_takes_several_processes(tmp_path, monkeypatch):
    monkeypatch.delenv("RANK", raising=False)
    several = {"budget": {"gpus": 4}}
    assert processes_of(str(write_job(tmp_path / "job", make_job("train", tmp_path / "out", {}, **several)))) == 4
    assert processes_of(str(write_job(tmp_path / "job", make_job("train", tmp_path / "out", {})))) == 1
    assert processes_of(str(write_job(tmp_path / "job", make_job("merge", tmp_path / "out", {}, **several)))) == 1
    monkeypatch.setenv("RANK", "0")
    assert processes_of(str(write_job(tmp_path / "job", make_job("train", tmp_path / "out", {}, **several)))) == 1


def test_gpus_are_shared_equally_by_the_nodes_or_refused():
    here = {"TUNELINE_RENDEZVOUS": "first:29400"}
    assert processes_per_node(8, Settings.from_environment({})) == 8
    assert processes_per_node(8, Settings.from_environment({"TUNELINE_NODES": "4", **here})) == 2
    with pytest.raises(UserError, match="8 GPUs cannot be shared equally by 3 nodes"):
        processes_per_node(8, Settings.from_environment({"TUNELINE_NODES": "3", **here}))


@pytest.mark.parametrize(
    ("environment", "says"),
    [
        ({"TUNELINE_NODES": "2"}, "2 nodes have no place to meet"),
        ({"TUNELINE_NODES": "two"}, "'two' is no number of machines"),
        ({"TUNELINE_NODES": "0"}, "'0' is no number of machines"),
        ({"TUNELINE_RENDEZVOUS": "first"}, "'first' is no address"),
        ({"TUNELINE_RENDEZVOUS": ":29400"}, "':29400' is no address"),
    ],
)
def test_settings_that_name_no_meeting_are_refused(environment, says):
    with pytest.raises(UserError, match=says):
        Settings.from_environment(environment)


def test_a_node_that_knows_no_rendezvous_is_told_which_variable_to_set(monkeypatch):
    monkeypatch.delenv("TUNELINE_RENDEZVOUS", raising=False)
    done = CliRunner().invoke(main, ["node"])
    assert done.exit_code == ExitCode.WRONG_INPUT
    assert "TUNELINE_RENDEZVOUS" in done.output


def test_a_node_that_does_not_see_the_shared_folder_says_so(tmp_path):
    problem = lacks(World(job_dir=str(tmp_path / "elsewhere"), nodes=2, processes_per_node=1))
    assert problem is not None and "does not see the job's folder" in problem.what
    job_dir = write_job(tmp_path / "job", make_job("train", tmp_path / "out", {}))
    assert lacks(World(job_dir=str(job_dir), nodes=2, processes_per_node=1)) is None


@pytest.fixture
def led(tmp_path):
    """A job of two nodes, and the store through which its first node leads."""
    job_dir = write_job(tmp_path / "job", make_job("train", tmp_path / "out", {}, budget={"gpus": 2}))
    store = torch.distributed.TCPStore("localhost", 0, is_master=True, wait_for_workers=False)
    world = World(job_dir=str(job_dir), nodes=2, processes_per_node=1)
    store.set("world", world.model_dump_json())
    return world, Place(Endpoint(host="localhost", port=store.port), "localhost"), store, job_dir


def test_what_a_node_lacks_is_the_end_of_the_job_and_a_users_to_mend(led):
    _, place, store, job_dir = led
    assert join(place.rendezvous, lambda _: Problem("no GPU", "budget.gpus", "buy one")) == ExitCode.WRONG_INPUT
    result = _end_of(job_dir, store, told=False)
    assert result.status is JobStatus.WRONG_INPUT
    assert JobResult.model_validate_json((job_dir / RESULT).read_text()).problems[0].fix == "buy one"


def test_a_node_that_joins_ends_with_the_job(led):
    _, place, store, _ = led
    for status, code in {"completed": 0, "preempted": 5, "diverged": 1, "out_of_memory": nodes.LOST}.items():
        store.set("ended", status)
        assert join(place.rendezvous, lambda _: None) == code
    assert store.add("left", 0) == 4


@pytest.mark.parametrize(("steps", "attempts"), [([0, 0, 0], 3), ([5, 5, 10, 10, 10, 10], 6)])
def test_attempts_end_when_three_in_a_row_made_no_checkpoint(led, tmp_path, monkeypatch, steps, attempts):
    world, place, store, job_dir = led
    made = []

    def attempt(_world, _place, number):
        (tmp_path / "out" / "checkpoints" / f"step-{steps[len(made)]}").mkdir(parents=True, exist_ok=True)
        made.append(number)
        return False

    monkeypatch.setattr(nodes, "run_ranks", attempt)
    assert _attempts(world, place, store, StopRequest()) is JobStatus.FAILED
    assert made == list(range(1, attempts + 1))
    assert newest_step(job_dir) == steps[-1]


@pytest.mark.parametrize("status", ["completed", "preempted", "diverged", "out_of_memory", "wrong_input"])
def test_an_end_of_the_trainings_own_is_no_reason_for_another_attempt(led, monkeypatch, status):
    world, place, store, job_dir = led

    def attempt(_world, _place, number):
        assert number == 1
        (job_dir / RESULT).write_text(JobResult(status=status).model_dump_json())
        return status == "completed"

    monkeypatch.setattr(nodes, "run_ranks", attempt)
    assert _attempts(world, place, store, StopRequest()).value == status


def test_a_stop_that_any_node_was_told_is_the_jobs_preemption_even_when_ranks_broke_on_it(led):
    _, _, store, job_dir = led
    (job_dir / RESULT).write_text(JobResult(status=JobStatus.FAILED, detail="Connection closed").model_dump_json())
    assert _end_of(job_dir, store, told=True).status is JobStatus.PREEMPTED
    assert JobResult.model_validate_json((job_dir / RESULT).read_text()).status is JobStatus.PREEMPTED


def test_a_node_is_silent_when_its_beat_stands_still_and_that_is_said_once(led):
    watch = _Watch(led[1].rendezvous, StopRequest())
    moments = [(1, 0.0), (1, SILENT_SECONDS - 1), (2, SILENT_SECONDS), (2, 2 * SILENT_SECONDS - 1)]
    assert not any(watch._is_silent("b", beat, now) for beat, now in moments)
    assert watch._is_silent("b", 2, 2 * SILENT_SECONDS)
    assert not watch._is_silent("b", 2, 3 * SILENT_SECONDS)
