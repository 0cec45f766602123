"""A training on one node or several: the first leads, the others join, and all go from attempt to attempt together.

The launcher of the first node keeps a store at the rendezvous' address, through which the nodes talk:

    world          `World`: what there is to do
    attempt        number of the attempt under way
    addresses      of all nodes that joined, each followed by a space
    beat/ADDRESS   a counter that a node which joined keeps moving
    stop           set by a node that was told to stop
    refused        what a node that cannot take part lacks
    ended          how the job ended
    left           number of nodes that have read that

An attempt fails on all nodes when a rank of any dies: the kernel of the dead closes its sockets, and its peers'
collectives break. A node that falls silent altogether is noticed by its beat. Another attempt goes on from the newest
whole checkpoint; it starts when as many nodes as before have met again.
"""

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

from training import checkpoints
from training.agent import Place, Stopped, StopRequest, World, own_address, ranks, run_ranks, use_interface_of
from tuneline.contracts.errors import ExitCode, Problem
from tuneline.contracts.jobs import JOB, RESULT, STARVED_RANK, Job, JobResult, JobStatus, StatedProblem
from tuneline.contracts.settings import Endpoint
from tuneline.contracts.store import write_whole

LOST = 75
"""Exit status (EX_TEMPFAIL) of a node that may be wanted again: the first node is gone, or memory ran out."""
FRUITLESS_ATTEMPTS = 3
"""After so many attempts in a row that made no new checkpoint there is no other."""
POLL_SECONDS = 0.5
BEAT_SECONDS = 5.0
SILENT_SECONDS = 60.0
"""A node whose beat has stood still for so long is gone."""
STORE_SECONDS = 60
"""What an answer of the store may take."""
SHARED_FILE_SECONDS = 60.0
"""What a file may take from one node to another: NFS looks again for a name that it did not find after up to 60 s."""
FAREWELL_SECONDS = 10.0
EXIT_OF = {
    JobStatus.COMPLETED: int(ExitCode.DONE),
    JobStatus.PREEMPTED: int(ExitCode.PREEMPTED),
    JobStatus.WRONG_INPUT: int(ExitCode.WRONG_INPUT),
    JobStatus.OUT_OF_MEMORY: LOST,  # the flow tries again with less
}
"""Exit status of a node that joined, by the job's end; for every other end it is 1."""


def lead(world: World, rendezvous: Endpoint) -> int:
    """Run a job's training as its first node, in as many attempts as it needs where there are several nodes.

    Args:
        world: the training.
        rendezvous: where the store will be; port 0 takes a free one.

    Returns:
        The exit status; `result.json` says how the job ended.
    """
    store = _store(rendezvous, is_master=True)
    place = Place(Endpoint(host=rendezvous.host, port=store.port), rendezvous.host)
    use_interface_of(own_address(place.rendezvous))
    store.set("world", world.model_dump_json())
    with StopRequest() as stop, _repeated(_Watch(place.rendezvous, stop).look, world.nodes > 1):
        status = _attempts(world, place, store, stop)
        store.set("ended", status.value)
        _wait(lambda: store.add("left", 0) >= world.nodes - 1, FAREWELL_SECONDS)
    return ExitCode.DONE if status is JobStatus.COMPLETED else ExitCode.FAILED


def join(rendezvous: Endpoint, lacks: Callable[[World], Problem | None]) -> int:
    """Take part in the training that the first node leads, until the job ends.

    Args:
        rendezvous: where the store is.
        lacks: what this node is missing for a training, if anything.

    Returns:
        The exit status, as in `EXIT_OF`.
    """
    from torch.distributed import DistError

    place = Place(rendezvous, own_address(rendezvous))
    use_interface_of(place.address)
    try:
        store = _store(rendezvous)
        world = World.model_validate_json(store.get("world"))
        with StopRequest() as stop, _repeated(_Beat(place, stop).move, True):
            if problem := lacks(world):
                store.set("refused", StatedProblem(**vars(problem)).model_dump_json())
                print(problem, file=sys.stderr)
                return ExitCode.WRONG_INPUT
            return _follow(world, place, store)
    except DistError as error:
        print(f"the first node is gone: {error}", file=sys.stderr, flush=True)
        return LOST


def _attempts(world: World, place: Place, store: Any, stop: StopRequest) -> JobStatus:
    job_dir = Path(world.job_dir)
    attempt, fruitless, reached = 0, 0, newest_step(job_dir)
    while True:
        attempt += 1
        store.set("attempt", str(attempt))
        with suppress(Stopped):
            if run_ranks(world, place, attempt):
                _wait((job_dir / RESULT).exists, SHARED_FILE_SECONDS)
        result = _end_of(job_dir, store, told=stop.requested or store.check(["stop"]))
        if result.status is not JobStatus.FAILED or world.nodes == 1:
            return result.status
        before, reached = reached, newest_step(job_dir)
        fruitless = 0 if reached > before else fruitless + 1
        if fruitless == FRUITLESS_ATTEMPTS:
            return result.status
        (job_dir / RESULT).unlink(missing_ok=True)
        print(f"attempt {attempt} failed; another one from step {reached}: {result.detail}", flush=True)


def _follow(world: World, place: Place, store: Any) -> int:
    taken_part_in = 0
    while True:
        if store.check(["ended"]):
            store.add("left", 1)
            return EXIT_OF.get(JobStatus(store.get("ended").decode()), int(ExitCode.FAILED))
        attempt = int(store.get("attempt"))
        if attempt == taken_part_in or store.check(["stop"]):
            time.sleep(POLL_SECONDS)
            continue
        with suppress(Stopped):
            run_ranks(world, place, attempt)
        taken_part_in = attempt


class _Watch:
    """The first node's look at the others: whether one was told to stop, cannot take part, or fell silent."""

    def __init__(self, rendezvous: Endpoint, stop: StopRequest) -> None:
        self._rendezvous, self._stop = rendezvous, stop
        self._store: Any = None
        self._moved: dict[str, tuple[int, float]] = {}

    def look(self) -> None:
        """Pass a stop on to this node, and end its ranks, which wait in vain, when a node is gone."""
        self._store = self._store or _store(self._rendezvous)
        if not self._stop.requested and (self._store.check(["stop"]) or self._store.check(["refused"])):
            os.kill(os.getpid(), signal.SIGTERM)
        addresses = self._store.get("addresses").decode().split() if self._store.check(["addresses"]) else []
        for address in set(addresses):
            if self._is_silent(address, self._store.add(f"beat/{address}", 0), time.monotonic()):
                print(f"{address} has been silent for {SILENT_SECONDS:.0f} s", flush=True)
                for rank in ranks():
                    rank.kill()

    def _is_silent(self, address: str, beat: int, now: float) -> bool:
        """Whether a node's beat has just stood still for too long; said once."""
        before, since = self._moved.get(address, (-1, now))
        if beat != before:
            self._moved[address] = (beat, now)
            return False
        if now - since < SILENT_SECONDS:
            return False
        self._moved[address] = (beat, float("inf"))
        return True


class _Beat:
    """The sign of life of a node that joined."""

    def __init__(self, place: Place, stop: StopRequest) -> None:
        self._place, self._stop = place, stop
        self._store: Any = None
        self._next = 0.0

    def move(self) -> None:
        """Show that this node is there, and tell the others when it was told to stop."""
        if self._store is None:
            self._store = _store(self._place.rendezvous)
            self._store.append("addresses", f"{self._place.address} ")
        if self._stop.requested:
            self._store.set("stop", "1")
        if time.monotonic() >= self._next:
            self._next = time.monotonic() + BEAT_SECONDS
            self._store.add(f"beat/{self._place.address}", 1)


def _end_of(job_dir: Path, store: Any, *, told: bool) -> JobResult:
    """Read how an attempt ended, and write it where no rank could."""
    if store.check(["refused"]):
        problem = StatedProblem.model_validate_json(store.get("refused"))
        return _write(job_dir, JobResult(status=JobStatus.WRONG_INPUT, detail=problem.what, problems=(problem,)))
    result = _read(job_dir / RESULT)
    if result is not None and result.status is not JobStatus.FAILED:
        return result
    if starved := _read(job_dir / STARVED_RANK):
        return starved
    if told:
        return _write(job_dir, JobResult(status=JobStatus.PREEMPTED, detail="SIGTERM before a step was done"))
    return result or JobResult(status=JobStatus.FAILED, detail="a rank died")


def _write(job_dir: Path, result: JobResult) -> JobResult:
    write_whole(job_dir / RESULT, result.model_dump_json(indent=1))
    return result


def _read(path: Path) -> JobResult | None:
    return JobResult.model_validate_json(path.read_text(encoding="utf-8")) if path.exists() else None


def newest_step(job_dir: Path) -> int:
    """Read the optimizer step of the newest sealed checkpoint of a job's training; 0 without one."""
    job = Job.model_validate_json((job_dir / JOB).read_text(encoding="utf-8"))
    return max(map(checkpoints.step_of, (job.out_dir / checkpoints.FOLDER).glob(f"{checkpoints.SEALED}*")), default=0)


def _store(rendezvous: Endpoint, *, is_master: bool = False) -> Any:
    from torch.distributed import TCPStore  # type: ignore[attr-defined]  # torch does not list it

    patience = timedelta(seconds=STORE_SECONDS)
    host, port = rendezvous.host, rendezvous.port
    return TCPStore(host, port, is_master=is_master, wait_for_workers=False, multi_tenant=True, timeout=patience)


@contextmanager
def _repeated(act: Callable[[], None], wanted: bool) -> Iterator[None]:
    """Do something again and again in a thread, until the block is left or the store is gone."""
    from torch.distributed import DistError

    over = threading.Event()

    def repeat() -> None:
        with suppress(DistError):  # the main thread talks to the same store, and acts on its end
            while not over.wait(POLL_SECONDS):
                act()

    thread = threading.Thread(target=repeat, daemon=True, name="nodes")
    if wanted:
        thread.start()
    try:
        yield
    finally:
        over.set()
        if wanted:  # an interpreter that ends while a thread is inside torch aborts
            thread.join()


def _wait(condition: Callable[[], bool], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(POLL_SECONDS / 5)
