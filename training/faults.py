"""Faults of the machine under a training, told from those of a program: a GPU that is gone, a disk that is full."""

import re
import shutil
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from tuneline.contracts.errors import UserError
from tuneline.contracts.jobs import JobInterrupted, JobStatus, disk_full, is_out_of_memory

LOST = re.compile(
    r"unspecified launch failure|uncorrectable|ECC error|GPU (?:is lost|has fallen off)|fallen off the bus|"
    r"all CUDA-capable devices are busy or unavailable|device (?:unavailable|not ready|lost)|driver shutting down|"
    r"NCCL error: (?:unhandled|remote process|internal)|initialization error|hardware stack error",
    re.IGNORECASE,
)
"""What CUDA and NCCL say of a device or a link that is gone; an illegal access or an assert is a program's fault."""
FAILED_WRITE = re.compile(r"No space left on device|Disk quota exceeded|PytorchStreamWriter failed|file write failed")
"""What safetensors and torch say of a write that failed; neither keeps the error's number."""
FULL_BYTES = 1 << 20
"""torch does not say why a write failed: with less room than this on the disk, that is why."""


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


@contextmanager
def disk_watched(folder: Path) -> Iterator[None]:
    """Say of a disk that is full what it is and what to do; checkpoints that were sealed before are not touched.

    Raises:
        UserError: in place of the error.
    """
    try:
        yield
    except Exception as error:
        told = "No space left" in str(error) or "quota exceeded" in str(error)
        if not FAILED_WRITE.search(str(error)) or not (told or shutil.disk_usage(folder).free < FULL_BYTES):
            raise
        traceback.print_exc()
        raise UserError([disk_full(folder)]) from error
