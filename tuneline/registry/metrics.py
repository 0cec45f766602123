"""Metrics on their way to MLflow: sent in the background, kept while the server is away.

Training must not wait for its logbook, and must not lose it: a server that restarts costs nothing but a warning.
"""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from tuneline.contracts.errors import ServiceUnavailable

if TYPE_CHECKING:
    from mlflow.entities import Metric

FLUSH_SECONDS: Final = 2.0
LONGEST_PAUSE_SECONDS: Final = 30.0
BATCH_POINTS: Final = 1000
"""MLflow's limit for one `log_batch`."""
KEPT_POINTS: Final = 50_000
"""About 15 MB; at 20 metrics every 10 s, seven hours without a server."""

log = logging.getLogger(__name__)


class MetricWriter:
    """A bounded queue of metric points and the thread that sends it."""

    def __init__(self, send: "Callable[[list[Metric]], None]", flush_seconds: float = FLUSH_SECONDS) -> None:
        """Start the thread; `send` raises `ServiceUnavailable` when the points are to be kept and sent again."""
        self._send = send
        self._flush_seconds = flush_seconds
        self._points: deque[Metric] = deque()
        self._lock = threading.Lock()
        self._closing = threading.Event()
        self._away = False
        self._in_flight = 0
        self._dropped = 0
        self._thread = threading.Thread(target=self._run, name="mlflow-metrics", daemon=True)
        self._thread.start()

    def add(self, points: "list[Metric]") -> None:
        """Queue points; beyond `KEPT_POINTS` the oldest go."""
        with self._lock:
            self._points.extend(points)
            while len(self._points) > KEPT_POINTS:
                self._points.popleft()
                self._dropped += 1

    def close(self, patience_seconds: float) -> int:
        """Send what is left, for at most about `patience_seconds`, and return how many points never arrived."""
        deadline = time.monotonic() + patience_seconds
        self._closing.set()
        self._thread.join(patience_seconds)
        while not self._thread.is_alive() and not self._flush() and time.monotonic() < deadline:
            time.sleep(min(self._flush_seconds, max(0.0, deadline - time.monotonic())))
        with self._lock:
            return len(self._points) + self._in_flight + self._dropped

    def _run(self) -> None:
        pause = self._flush_seconds
        while not self._closing.wait(pause):
            pause = self._flush_seconds if self._flush() else min(2 * pause, LONGEST_PAUSE_SECONDS)

    def _flush(self) -> bool:
        while batch := self._take():
            try:
                self._send(batch)
            except ServiceUnavailable as error:
                self._put_back(batch)
                self._note_away(error)
                return False
            except Exception:  # refused, and would be refused again: these points must not block those behind them
                log.exception("MLflow refused %d metric points; they are not logged", len(batch))
                self._settle(lost=len(batch))
            else:
                self._settle(lost=0)
        self._note_back()
        return True

    def _take(self) -> "list[Metric]":
        with self._lock:
            batch = [self._points.popleft() for _ in range(min(BATCH_POINTS, len(self._points)))]
            self._in_flight = len(batch)
        return batch

    def _put_back(self, batch: "list[Metric]") -> None:
        with self._lock:
            self._points.extendleft(reversed(batch))
            self._in_flight = 0

    def _settle(self, lost: int) -> None:
        with self._lock:
            self._in_flight = 0
            self._dropped += lost

    def _note_away(self, error: ServiceUnavailable) -> None:
        if not self._away:
            log.warning("metrics are kept until MLflow answers again: %s", error)
        self._away = True

    def _note_back(self) -> None:
        if self._away:
            log.warning("MLflow answers again: the metrics that were kept are logged")
        self._away = False
