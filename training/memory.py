"""How much memory a training takes, and what it says when there is none left."""

import resource
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from tuneline.contracts.jobs import JobInterrupted, JobStatus, is_out_of_memory


def peak_memory_bytes(device: str) -> int:
    """Return the most that this process has held: on a GPU what torch allocated there, else the machine's memory."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # Linux counts in KiB


@contextmanager
def memory_watched(steps_done: Callable[[], int], planned: int, told: Callable[[int], None]) -> Iterator[None]:
    """Turn an allocation that fails inside the block into the end `out_of_memory`, which the flow answers with a rung.

    Args:
        steps_done: gives the optimizer steps that are done.
        planned: optimizer steps of the training.
        told: hears at which step it was, before the block is left.

    Raises:
        JobInterrupted: in place of the error, whose traceback is printed.
    """
    try:
        yield
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        traceback.print_exc()
        done = steps_done()
        told(done)
        detail = f"{type(error).__name__} after step {done}: {str(error).strip().splitlines()[0]}"
        raise JobInterrupted(JobStatus.OUT_OF_MEMORY, detail, done, planned) from error
