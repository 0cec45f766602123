"""One process for each device, when a job asks for several, on one node or many."""

import os
from pathlib import Path

from training.agent import World, share_threads
from training.nodes import join, lead
from tuneline.contracts.artifacts import Record
from tuneline.contracts.errors import Problem, UserError
from tuneline.contracts.jobs import JOB, Job, Reporter, run_job
from tuneline.contracts.lifeline import die_with_supervisor
from tuneline.contracts.settings import Endpoint, Settings, processes_per_node, switch_telemetry_off

HERE = Endpoint(host="localhost", port=0)
"""Where the ranks of a single node meet: at any free port."""


def processes_of(job_dir: str) -> int:
    """Count the processes that a job's training needs; 1 inside one of them, and for every other stage."""
    job = Job.model_validate_json((Path(job_dir) / JOB).read_text(encoding="utf-8"))
    if job.stage != "train" or "RANK" in os.environ:
        return 1
    return job.spec.budget.gpus


def launch(job_dir: str, processes: int) -> int:
    """Run the job in `processes` processes, on the nodes that the settings name; rank 0 writes its result.

    The launcher's agent lives in this process and each rank asks the kernel to die with it, so that the death of the
    flow reaches all of them.

    Returns:
        The exit status.
    """
    settings = Settings.from_environment()
    world = World(job_dir=job_dir, nodes=settings.nodes, processes_per_node=processes_per_node(processes, settings))
    if problem := lacks(world):

        def refuse(_: Job, __: Reporter) -> Record:
            raise UserError([problem])

        return run_job([job_dir], refuse)
    _begin(world)
    return lead(world, settings.rendezvous or HERE)


def take_part(rendezvous: str) -> int:
    """Run this node's share of the training that the node at `rendezvous` leads.

    Returns:
        The exit status: that of the job, or `training.nodes.LOST`.
    """
    die_with_supervisor()
    switch_telemetry_off()

    def begin(world: World) -> Problem | None:
        problem = lacks(world)
        if problem is None:
            share_threads(world.processes_per_node)
        return problem

    return join(Endpoint.parse(rendezvous), begin)


def lacks(world: World) -> Problem | None:
    """Say what this node lacks for a training; one without any GPU trains on its CPU."""
    import torch

    if not (Path(world.job_dir) / JOB).exists():
        fix = "set TUNELINE_HOME to a folder on a file system that all nodes mount at the same path"
        return Problem(f"{os.uname().nodename} does not see the job's folder", world.job_dir, fix)
    visible, wanted = torch.cuda.device_count(), world.processes_per_node
    if 0 < visible < wanted:
        what = f"{wanted} GPUs are asked for on each node and {visible} are visible on {os.uname().nodename}"
        return Problem(what, "budget.gpus", f"set it to {visible * world.nodes}, or look at CUDA_VISIBLE_DEVICES")
    return None


def _begin(world: World) -> None:
    die_with_supervisor()
    switch_telemetry_off()
    share_threads(world.processes_per_node)
