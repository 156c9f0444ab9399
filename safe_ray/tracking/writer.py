"""One thread that writes to MLflow in the order asked, so that a sweep never waits for it."""

from __future__ import annotations

import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from types import TracebackType

from safe_ray.errors import InputError
from safe_ray.tracking.connection import AwayError, displayed, sqlite_file
from safe_ray.tracking.mlflow import Tracker

Record = Callable[[Tracker], object]
"""Writes something of the sweep to MLflow; called again, it completes what is there."""

PATIENCE_SECONDS = 120.0
OPEN_SECONDS = 5.0
"""How long a sweep that begins waits for a server, so as to say at once that it is away."""
_FIRST_PAUSE, _LAST_PAUSE = 1.0, 60.0
_MENTIONED_SECONDS = 5.0
_IDLE_SECONDS = 10.0


def _say_on_stderr(sentence: str) -> None:
    print(sentence, file=sys.stderr)


class BackgroundTracker:
    """Records for a `Tracker`, queued and written one after the other.

    Tracking is best effort: nothing raises what MLflow does wrong, and nothing waits for it. While
    MLflow is away, the first record in the queue is tried again now and then, and the others wait
    behind it; one that MLflow refuses is left out. What is left when the sweep ends is not lost:
    records are made of the sweep's own files, and whoever makes them again brings what is missing.
    So a record is small, and reads what it writes when it is its turn.

    What there is to say is said by the next call, and on its thread. Use it as a context manager:
    leaving the block gives MLflow some time to take what is queued, and none after an interruption.

    Args:
        tracker: writes one record after the other.
        say: takes a sentence for the person who ran the sweep.
        remedy: a sentence that says what becomes of records that MLflow does not take.
        patience: the seconds that leaving the block may take.
        required: whether a database file that cannot be opened is an error.
    """

    def __init__(
        self,
        tracker: Tracker,
        say: Callable[[str], None] = _say_on_stderr,
        remedy: str = "The next run of the sweep records what is missing.",
        patience: float = PATIENCE_SECONDS,
        required: bool = True,
    ) -> None:
        self.tracker = tracker
        self._say = say
        self._remedy = remedy
        self._patience = patience
        self._required = required
        self._queue: deque[Record] = deque()
        self._changed = threading.Condition()
        self._closing = self._dropping = self._closed = False
        self._away = self._said_away = self._said_back = False
        self._refused = 0
        self._to_say: deque[str] = deque()
        self._run_ids: dict[str, str] = {}
        self._idle: Record | None = None
        self._thread = threading.Thread(target=self._work, name="mlflow-writer", daemon=True)

    @property
    def missing(self) -> int:
        """How many records MLflow has not taken."""
        with self._changed:
            return len(self._queue) + self._refused

    def open(self) -> None:
        """Begin to write: open a database now, and let a server have a few seconds.

        Raises:
            InputError: a required database file cannot be opened.
        """
        self.tracker.prepare()
        if sqlite_file(self.tracker.uri) is not None:
            try:
                self.tracker.open()
            except InputError as error:
                if self._required:
                    raise
                self._note_away(error)
        opened = threading.Event()
        self.put(lambda tracker: opened.set())
        self._thread.start()
        deadline = time.monotonic() + OPEN_SECONDS
        while not opened.wait(0.05) and not self._away and time.monotonic() < deadline:
            pass
        self._tell()

    def put(self, record: Record) -> None:
        """Queue a record."""
        with self._changed:
            self._queue.append(record)
            self._changed.notify_all()
        self._tell()

    def when_idle(self, record: Record) -> None:
        """Write a record every few seconds while nothing is queued and MLflow answers.

        It shows what is going on. A later record holds all of it: nothing is said of it, and
        nothing is missing, if MLflow does not take it.
        """
        with self._changed:
            self._idle = record
            self._changed.notify_all()

    def run_id(self, task_id: str) -> str | None:
        """Return the id of a task's run, or None if MLflow has not heard of the task yet."""
        self._run_ids |= self.tracker.known_runs()
        return self._run_ids.get(task_id)

    def flush(self) -> None:
        """Wait until all that is queued is written or left out, or MLflow is away."""
        with self._changed:
            self._changed.wait_for(lambda: not self._queue or self._away)
        self._tell()

    def close(self, drop: bool = False) -> None:
        """Let MLflow take what is queued, if it does so in time, or drop it; again does nothing."""
        with self._changed:
            self._closing, self._dropping = True, drop
            self._changed.notify_all()
        if not drop and self._thread.is_alive():
            self._thread.join(min(self._patience, _MENTIONED_SECONDS))
            left = self._patience - _MENTIONED_SECONDS
            if self._thread.is_alive() and left > 0:
                self._say(
                    f"Waiting up to {left:.0f} s for MLflow at {displayed(self.tracker.uri)} to "
                    f"take what it has not heard yet: {self.missing} records."
                )
                self._thread.join(left)
        with self._changed:
            self._dropping = True
            ended, self._closed = self._closed, True
        if not self._thread.is_alive():
            self._forget()
        if not drop and not ended:
            self._tell()
            self._tell_missing()

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

    def _work(self) -> None:
        pause = _FIRST_PAUSE
        while True:
            with self._changed:
                idle = None
                if not self._changed.wait_for(
                    lambda: self._queue or self._closing,
                    None if self._idle is None else _IDLE_SECONDS,
                ):
                    idle = self._idle
                elif self._dropping or not self._queue:
                    return
                else:
                    record, last_try = self._queue[0], self._closing
            if idle is not None:
                self._show(idle)
                continue
            if self._write(record):
                pause = _FIRST_PAUSE
                with self._changed:
                    self._queue.popleft()
                    self._changed.notify_all()
                continue
            with self._changed:
                self._changed.notify_all()
                if last_try:
                    return
                self._changed.wait_for(lambda: self._closing, pause)
            pause = min(2 * pause, _LAST_PAUSE)

    def _write(self, record: Record) -> bool:
        """Write a record, and return whether it is done with; it is not while MLflow is away."""
        for once_more in (True, False):
            try:
                self.tracker.open()
            except Exception as error:
                self._note_away(error)
                return False
            try:
                record(self.tracker)
            except AwayError as error:
                # What was asked last may have been done: the next try looks what there is.
                self._forget()
                self._note_away(error)
                return False
            except Exception as error:
                # MLflow may have been given another database meanwhile, which knows no run of ours.
                self._forget()
                if once_more and isinstance(error, InputError):
                    continue
                self._note_refused(error)
            break
        self._note_back()
        return True

    def _show(self, record: Record) -> None:
        try:
            self.tracker.open()
            record(self.tracker)
        except Exception:
            # The next real record meets the same, and says it.
            self._forget()

    def _forget(self) -> None:
        self._run_ids |= self.tracker.known_runs()
        self.tracker.close()

    def _note_away(self, error: Exception) -> None:
        with self._changed:
            self._away = True
            if not self._said_away:
                self._said_away = True
                self._to_say.append(f"{self._words(error)} {self._remedy}")

    def _note_back(self) -> None:
        with self._changed:
            if self._away and not self._said_back:
                self._said_back = True
                self._to_say.append(f"MLflow at {displayed(self.tracker.uri)} answers again.")
            self._away = False

    def _note_refused(self, error: Exception) -> None:
        with self._changed:
            self._refused += 1
            if self._refused == 1:
                self._to_say.append(f"{self._words(error)} {self._remedy}")

    def _words(self, error: Exception) -> str:
        if isinstance(error, InputError):
            return str(error)
        # Not MLflow's doing, but a mistake of ours: it must not cost the report either.
        where = displayed(self.tracker.uri)
        cause = f"{type(error).__name__}: {error}"
        return f"Something could not be recorded in MLflow at {where} ({cause})."

    def _tell(self) -> None:
        while True:
            with self._changed:
                if not self._to_say:
                    return
                sentence = self._to_say.popleft()
            self._say(sentence)

    def _tell_missing(self) -> None:
        """Say what is missing at the end, unless that was said when MLflow went away."""
        with self._changed:
            said = (self._away and not self._said_back) or self._refused > 0
        missing = self.missing
        if missing and not said:
            where = displayed(self.tracker.uri)
            self._say(f"MLflow at {where} has not taken {missing} records in time. {self._remedy}")
