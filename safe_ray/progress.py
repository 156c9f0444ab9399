"""Progress with an estimate: a bar on a terminal, a plain line now and then elsewhere."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, Protocol, TextIO

from safe_ray import job
from safe_ray.redaction import redacted

if TYPE_CHECKING:
    from rich.progress import Progress as Bars

PLAIN_SECONDS = 5.0
LIVE_SECONDS = 0.1
# What ends sooner is not worth a line that stays.
MENTIONED_SECONDS = 0.5

Progress = Callable[[int, int, float | None], None]
"""Called with what is done, the total, and the seconds left (None while unknown)."""


def duration(seconds: float) -> str:
    """Return seconds in words: `8 s`, `2 min 05 s`, `3 h 20 min`."""
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


class Reporter:
    """Says on `stream` how far the phases of a long piece of work are.

    Args:
        stream: where to write; None is standard error.
        clock: returns seconds; tests pass their own.
    """

    def __init__(
        self, stream: TextIO | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._stream = stream if stream is not None else sys.stderr
        self._clock = clock
        live = self._stream.isatty() and os.environ.get("TERM") not in ("dumb", "unknown")
        # Whatever a job's log is attached to, it is kept and read later.
        live = live and not job.is_submitted()
        self._display: _Display = _Bar(self._stream, clock) if live else _Lines(self._stream, clock)

    def __enter__(self) -> Reporter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._display.close()

    def say(self, text: str) -> None:
        """Write a line of its own, without the passwords and tokens in it."""
        self._display.close()
        self._stream.write(redacted(text) + "\n")
        self._stream.flush()

    def phase(self, name: str) -> Progress:
        """Start a phase, and return what to call with its progress.

        A phase with nothing to do, or one that ends within a blink, is not mentioned.
        """
        self._display.close()
        began = self._clock()
        finished = False

        def progress(done: int, total: int, seconds_left: float | None) -> None:
            nonlocal finished
            if finished or total == 0:
                return
            if done < total:
                self._display.show(name, done, total, seconds_left, began)
                return
            finished = True
            self._display.close()
            took = self._clock() - began
            if took >= MENTIONED_SECONDS:
                self.say(f"{name}: {done} of {total} done, took {duration(took)}")

        return progress


class _Display(Protocol):
    """How a phase that is under way is shown."""

    def show(
        self, name: str, done: int, total: int, seconds_left: float | None, began: float
    ) -> None: ...

    def close(self) -> None: ...


class _Lines:
    """A plain line when a phase begins to count, and then every few seconds."""

    def __init__(self, stream: TextIO, clock: Callable[[], float]) -> None:
        self._stream = stream
        self._clock = clock
        self._shown: tuple[str, float] | None = None

    def show(
        self, name: str, done: int, total: int, seconds_left: float | None, began: float
    ) -> None:
        now = self._clock()
        last = began
        if self._shown is not None and self._shown[0] == name:
            last = max(last, self._shown[1])
        if now - last < PLAIN_SECONDS and done:
            return
        self._shown = (name, now)
        left = "" if seconds_left is None else f", about {duration(seconds_left)} left"
        self._stream.write(f"{name}: {done} of {total} ({100 * done // total}%){left}\n")
        self._stream.flush()

    def close(self) -> None:
        self._shown = None


class _Bar:
    """A bar in the last line of a terminal, which goes when the phase ends."""

    def __init__(self, stream: TextIO, clock: Callable[[], float]) -> None:
        self._stream = stream
        self._clock = clock
        self._bars: Bars | None = None
        self._shown = 0.0

    def show(
        self, name: str, done: int, total: int, seconds_left: float | None, began: float
    ) -> None:
        now = self._clock()
        if self._bars is not None and now - self._shown < LIVE_SECONDS:
            return
        self._shown = now
        if self._bars is None:
            self._bars = _bars(self._stream, self._clock)
            self._bars.add_task(name, total=total, left="")
            # A message may have taken the bar away for a moment.
            self._bars.tasks[0].start_time = began
            self._bars.start()
        left = "" if seconds_left is None else f"about {duration(seconds_left)} left"
        only = self._bars.task_ids[0]
        self._bars.update(only, completed=done, total=total, left=left, refresh=True)

    def close(self) -> None:
        if self._bars is not None:
            self._bars.stop()
            self._bars = None


def _bars(stream: TextIO, clock: Callable[[], float]) -> Bars:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        SpinnerColumn,
        TextColumn,
        TimeElapsedColumn,
    )
    from rich.progress import Progress as Bars

    return Bars(
        SpinnerColumn(),
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=20),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[left]}"),
        console=Console(file=stream, highlight=False, markup=False),
        transient=True,
        refresh_per_second=5,
        get_time=clock,
        # What others say meanwhile goes above the bar. Standard output is the caller's: others
        # redirect it while a bar is shown, and it need not be this terminal.
        redirect_stdout=False,
        redirect_stderr=stream is sys.stderr,
    )
