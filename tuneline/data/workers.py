"""Chunks of rows through functions in processes of their own: in order, and the same whatever their number."""

import gc
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from multiprocessing import get_context
from types import TracebackType
from typing import Self, TypeVar

from tuneline.contracts.lifeline import signal_on_parent_death

CHUNK_ROWS = 2_000
"""Rows of a task: some 2 MB, half a second of work."""
WAITING_TASKS = 4
"""Tasks per worker that are under way or waiting; more would only take memory."""

T = TypeVar("T")
R = TypeVar("R")


class Workers:
    """Processes forked from this one, so that what is loaded here (a tokenizer) is there at once.

    Fork before any library has started threads: enter the context first.
    """

    def __init__(self, count: int) -> None:
        """Use `count` processes; with 1, work in this one."""
        self._count = count
        self._pool: ProcessPoolExecutor | None = None

    def __enter__(self) -> Self:
        """Fork."""
        if self._count > 1:
            os.environ["TOKENIZERS_PARALLELISM"] = "false"  # one thread per worker: the workers share the cores
            self._pool = ProcessPoolExecutor(self._count, get_context("fork"), _begin)
            self._pool.submit(os.getpid).result()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End the processes; on an error without waiting for what is under way."""
        if self._pool is not None:
            self._pool.shutdown(wait=error is None, cancel_futures=True)

    def map(self, function: Callable[[T], R], chunks: Iterable[T]) -> Iterator[R]:
        """Apply a function to chunks as they come, and yield the results in their order."""
        if self._pool is None:
            yield from map(function, chunks)
            return
        waiting: deque[Future[R]] = deque()
        for chunk in chunks:
            waiting.append(self._pool.submit(_run, function, chunk))
            if len(waiting) >= self._count * WAITING_TASKS:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def _begin() -> None:
    """Prepare a worker: it ends with its parent, and collects cycles between tasks instead of all the time.

    A chunk makes hundreds of thousands of small objects that live until its end; looking through them again and again
    took 27 % of the time.
    """
    signal_on_parent_death()
    gc.freeze()
    gc.disable()


def _run(function: Callable[[T], R], chunk: T) -> R:
    try:
        return function(chunk)
    finally:
        gc.collect()


def chunked(rows: Iterable[T], size: int = CHUNK_ROWS) -> Iterator[list[T]]:
    """Cut a stream of rows into lists."""
    chunk: list[T] = []
    for row in rows:
        chunk.append(row)
        if len(chunk) == size:
            yield chunk
            chunk = []
    if chunk:
        yield chunk
