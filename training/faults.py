"""GPUs that stop answering, told from the faults of a program."""

import re
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from tuneline.contracts.jobs import JobInterrupted, JobStatus, is_out_of_memory

LOST = re.compile(
    r"unspecified launch failure|uncorrectable|ECC error|GPU (?:is lost|has fallen off)|fallen off the bus|"
    r"all CUDA-capable devices are busy or unavailable|device (?:unavailable|not ready|lost)|driver shutting down|"
    r"NCCL error: (?:unhandled|remote process|internal)|initialization error|hardware stack error",
    re.IGNORECASE,
)
"""What CUDA and NCCL say of a device or a link that is gone; an illegal access or an assert is a program's fault."""


def is_device_lost(error: BaseException) -> bool:
    """Whether an error says that a GPU, or the way to another one, is gone."""
    return isinstance(error, RuntimeError) and LOST.search(str(error)) is not None


@contextmanager
def device_watched(steps_done: Callable[[], int], planned: int) -> Iterator[None]:
    """Say of a lost GPU what it is and what to do, in place of CUDA's own words, which go to the output log.

    Raises:
        JobInterrupted: in place of the error.
    """
    try:
        yield
    except RuntimeError as error:
        if is_out_of_memory(error) or not is_device_lost(error):
            raise
        traceback.print_exc()
        done = steps_done()
        first_line = str(error).strip().splitlines()[0]
        detail = (
            f"a GPU stopped answering after step {done} ({first_line}): look at `nvidia-smi -q` and the kernel's log "
            "for Xid errors, then run again, on another machine if need be: it goes on from the newest checkpoint"
        )
        raise JobInterrupted(JobStatus.FAILED, detail, done, planned) from error
