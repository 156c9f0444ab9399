"""One thread that writes to MLflow in the order asked, so that the search never waits for it."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path
from types import TracebackType
from typing import Any

from safe_ray.errors import InputError
from safe_ray.tracking.connection import displayed
from safe_ray.tracking.mlflow import Curve, Tracker


def _say_on_stderr(sentence: str) -> None:
    print(sentence, file=sys.stderr)


class BackgroundTracker:
    """The calls of a `Tracker`, queued: arguments are copied, files are read when it is their turn.

    Once it is open, tracking is best effort: no call raises what MLflow does wrong. The first error
    stops the writing, what is queued behind it is dropped, and `say` is told once, by the next call
    and on its thread. Nothing is lost by that, since the sweep's own files hold every result, and
    the same calls on the next start write what is missing.

    Use it as a context manager: leaving the block writes what is queued, and after an interruption
    drops it.

    Args:
        tracker: writes one call after the other.
        say: takes a sentence for the person who ran the sweep.
    """

    def __init__(self, tracker: Tracker, say: Callable[[str], None] = _say_on_stderr) -> None:
        self.tracker = tracker
        self._say = say
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="mlflow-writer")
        self._pending: set[Future[Any]] = set()
        self._lock = threading.Lock()
        self._started: dict[str, Future[Any]] = {}
        self._error: BaseException | None = None
        self._told = False

    def open(self) -> None:
        """Open the tracker and wait for it, so that a wrong address is refused at once."""
        try:
            self._pool.submit(self.tracker.open, self._say).result()
        except BaseException:
            self._pool.shutdown(wait=False)
            raise

    def log_system(self, facts: Mapping[str, str]) -> None:
        """Queue `Tracker.log_system`."""
        self._queue(self.tracker.log_system, dict(facts))

    def start_task(
        self, task_id: str, name: str, tags: Mapping[str, str], params: Mapping[str, Any]
    ) -> None:
        """Queue `Tracker.start_task`; `run_id` gives the id."""
        start = self.tracker.start_task
        self._started[task_id] = self._queue(start, task_id, name, dict(tags), dict(params))

    def log_candidate(
        self,
        task_id: str,
        candidate_id: str,
        name: str,
        tags: Mapping[str, str],
        params: Mapping[str, Any],
        metrics: Mapping[str, float],
        curves: Mapping[str, Curve],
        head: Path | None,
        failed: bool = False,
    ) -> None:
        """Queue `Tracker.log_candidate`."""
        self._queue(
            self.tracker.log_candidate,
            task_id,
            candidate_id,
            name,
            dict(tags),
            dict(params),
            dict(metrics),
            {key: dict(c) if isinstance(c, Mapping) else tuple(c) for key, c in curves.items()},
            head,
            failed,
        )

    def finish_task(
        self,
        task_id: str,
        metrics: Mapping[str, float],
        params: Mapping[str, Any],
        head: Path | None,
        model_name: str | None,
        alias: str = "best",
        step: int = 0,
    ) -> None:
        """Queue `Tracker.finish_task`."""
        self._queue(
            self.tracker.finish_task,
            task_id,
            dict(metrics),
            dict(params),
            head,
            model_name,
            alias,
            step,
        )

    def run_id(self, task_id: str) -> str | None:
        """Wait until a task's run is there and return its id, or None if MLflow was lost before."""
        run_id: str | None = self._started[task_id].result()
        return run_id

    def flush(self) -> None:
        """Wait until all that is queued is written or dropped."""
        with self._lock:
            pending = set(self._pending)
        wait(pending)
        self._tell_loss()

    def close(self, drop: bool = False) -> None:
        """Write or drop what is queued, end the thread, close the tracker; again does nothing."""
        self._pool.shutdown(wait=True, cancel_futures=drop)
        self.tracker.close()
        self._tell_loss()

    def __enter__(self) -> BackgroundTracker:
        self.open()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close(drop=isinstance(error, KeyboardInterrupt))

    def _queue(self, call: Callable[..., Any], *arguments: Any) -> Future[Any]:
        self._tell_loss()
        future = self._pool.submit(self._write, call, *arguments)
        with self._lock:
            self._pending.add(future)
        future.add_done_callback(self._done)
        return future

    def _write(self, call: Callable[..., Any], *arguments: Any) -> Any:
        if self._error is not None:
            return None
        try:
            return call(*arguments)
        except Exception as error:
            self._error = error
            return None

    def _done(self, future: Future[Any]) -> None:
        with self._lock:
            self._pending.discard(future)

    def _tell_loss(self) -> None:
        error = self._error
        if error is None or self._told:
            return
        self._told = True
        if isinstance(error, InputError):
            self._say(str(error))
            return
        # Not MLflow's doing, but a mistake of ours: it must not cost the report either.
        where = displayed(self.tracker.uri)
        self._say(f"Recording in MLflow at {where} has ended ({type(error).__name__}: {error}).")
