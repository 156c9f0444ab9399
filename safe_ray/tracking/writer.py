"""One thread that writes to MLflow in the order asked, so that the search never waits for it."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path
from types import TracebackType
from typing import Any

from safe_ray.tracking.mlflow import Curve, Tracker


class BackgroundTracker:
    """The calls of a `Tracker`, queued: arguments are copied, files are read when it is their turn.

    The first error stops the writing: what is queued behind it is dropped, and the error is raised
    by the next call, `flush` or `close`. Nothing is lost by that, since the sweep's own files hold
    every result, and the same calls on the next start write what is missing.

    Use it as a context manager: leaving the block writes what is queued. When the block ends with
    an error of its own, that error is the one that is raised.
    """

    def __init__(self, tracker: Tracker) -> None:
        self.tracker = tracker
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="mlflow-writer")
        self._pending: set[Future[Any]] = set()
        self._lock = threading.Lock()
        self._error: BaseException | None = None

    def open(self) -> None:
        """Open the tracker and wait for it, so that a wrong address is refused at once."""
        try:
            self._pool.submit(self.tracker.open).result()
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
        self._queue(self.tracker.start_task, task_id, name, dict(tags), dict(params))

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
        head: Path,
        model_name: str | None,
        alias: str = "best",
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
        )

    def run_id(self, task_id: str) -> str:
        """Wait for what is queued and return the id of a task's run."""
        self.flush()
        return self.tracker.run_id(task_id)

    def flush(self) -> None:
        """Wait until all that is queued is written.

        Raises:
            InputError: MLflow was lost; the sentence says how to go on.
        """
        with self._lock:
            pending = set(self._pending)
        wait(pending)
        self._raise_error()

    def close(self) -> None:
        """Write what is queued, end the thread, close the tracker; calling it again does nothing.

        Raises:
            InputError: MLflow was lost; the sentence says how to go on.
        """
        self._pool.shutdown(wait=True)
        self.tracker.close()
        self._raise_error()

    def __enter__(self) -> BackgroundTracker:
        self.open()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if error is None:
            self.close()
            return
        with contextlib.suppress(Exception):
            self.close()

    def _queue(self, call: Callable[..., Any], *arguments: Any) -> None:
        self._raise_error()
        future = self._pool.submit(self._write, call, *arguments)
        with self._lock:
            self._pending.add(future)
        future.add_done_callback(self._done)

    def _write(self, call: Callable[..., Any], *arguments: Any) -> None:
        if self._error is not None:
            return
        try:
            call(*arguments)
        except BaseException as error:
            self._error = error

    def _done(self, future: Future[Any]) -> None:
        with self._lock:
            self._pending.discard(future)

    def _raise_error(self) -> None:
        if self._error is not None:
            raise self._error
