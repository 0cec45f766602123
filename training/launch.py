"""One process for each device, when a job asks for several."""

import os
from pathlib import Path

from tuneline.contracts.artifacts import Record
from tuneline.contracts.errors import ExitCode, UserError
from tuneline.contracts.jobs import JOB, Job, Reporter, run_job
from tuneline.contracts.lifeline import die_with_supervisor
from tuneline.contracts.settings import switch_telemetry_off


def processes_of(job_dir: str) -> int:
    """Count the processes that a job's training needs; 1 inside one of them, and for every other stage."""
    job = Job.model_validate_json((Path(job_dir) / JOB).read_text(encoding="utf-8"))
    if job.stage != "train" or "RANK" in os.environ:
        return 1
    return job.spec.budget.gpus


def launch(job_dir: str, processes: int) -> int:
    """Run the job in `processes` processes; rank 0 writes its result.

    The launcher's agent lives in this process and each rank asks the kernel to die with it, so that the death of the
    flow reaches all of them.

    Returns:
        The exit status.
    """
    import torch
    from torch.distributed import run as torchrun
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    if 0 < torch.cuda.device_count() < processes:
        return run_job([job_dir], _refuse)
    die_with_supervisor()
    switch_telemetry_off()
    threads = int(os.environ.get("OMP_NUM_THREADS") or len(os.sched_getaffinity(0)))
    os.environ["OMP_NUM_THREADS"] = str(max(1, threads // processes))
    try:
        torchrun.main(["--standalone", f"--nproc-per-node={processes}", "-m", "training", job_dir])
    except ChildFailedError:
        return ExitCode.FAILED  # result.json says how; without one, the flow counts the job as failed
    return ExitCode.DONE


def _refuse(job: Job, _: Reporter) -> Record:
    import torch

    visible = torch.cuda.device_count()
    what = f"{job.spec.budget.gpus} GPUs are asked for and {visible} are visible"
    raise UserError.of(what, "budget.gpus", f"set it to {visible}, or look at CUDA_VISIBLE_DEVICES")
