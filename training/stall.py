"""A step that never ends: a hung collective, a device that answers no more."""

import faulthandler
import math
import os
import statistics
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any, Self

from transformers import TrainerCallback

from tuneline.contracts.errors import ExitCode

WINDOW_STEPS = 100
"""Steps of which the median is taken."""
STALL_FACTOR = 50.0
"""Times the median step."""
LEAST_STALL_SECONDS = 300.0
"""A machine that swaps, a file system that hangs for a moment, a compilation: all shorter."""


class StallWatch(TrainerCallback):  # type: ignore[misc]  # transformers is untyped here
    """Ends the process when a step takes `STALL_FACTOR` times the median one: a hung collective, a lost device.

    Only what lies between a step's begin and its end is watched; saving and measuring take their time. The threads'
    stacks go to the output log. A process that hangs inside a kernel cannot be asked to stop, so it is ended; the next
    attempt goes on from the newest whole checkpoint.
    """

    def __init__(self, least_seconds: float = LEAST_STALL_SECONDS, end: Callable[[str], None] | None = None) -> None:
        """Watch from the first step on; `end` is told why, in place of the end of this process."""
        self._least_seconds, self._end = least_seconds, end or end_process
        self._durations: deque[float] = deque(maxlen=WINDOW_STEPS)
        self._changed = threading.Condition()
        self._begun: float | None = None
        self._over = False

    def __enter__(self) -> Self:
        """Start to watch."""
        threading.Thread(target=self._watch, name="stall watch", daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        """Stop to watch, however the training ended."""
        with self._changed:
            self._over = True
            self._changed.notify()

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        """Start the clock."""
        self._set(time.monotonic())

    def on_step_end(self, *_: Any, **__: Any) -> None:
        """Stop the clock."""
        if self._begun is not None:
            self._durations.append(time.monotonic() - self._begun)
        self._set(None)

    @property
    def limit_seconds(self) -> float:
        """How long a step may take; no limit before the first has ended."""
        if not self._durations:
            return math.inf
        return max(self._least_seconds, STALL_FACTOR * statistics.median(self._durations))

    def _set(self, begun: float | None) -> None:
        with self._changed:
            self._begun = begun
            self._changed.notify()

    def _watch(self) -> None:
        with self._changed:
            while not self._over:
                limit = self.limit_seconds
                waited = 0.0 if self._begun is None else time.monotonic() - self._begun
                if self._begun is not None and waited > limit:
                    self._end(f"a step takes {waited:.0f} s; the median is {statistics.median(self._durations):.1f} s")
                    return
                left = None if self._begun is None or math.isinf(limit) else limit - waited
                self._changed.wait(left)


def end_process(why: str) -> None:
    """Say where each thread stands and end this process, whatever its main thread is caught in."""
    faulthandler.dump_traceback(all_threads=True)
    print(
        f"stalled: {why}; the stacks are above. Run again to go on from the newest checkpoint.",
        file=sys.stderr,
        flush=True,
    )
    os._exit(ExitCode.FAILED)
