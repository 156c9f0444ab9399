"""Progress with an estimate: a live line on a terminal, a plain line now and then elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from types import TracebackType
from typing import TextIO

PLAIN_SECONDS = 5.0
LIVE_SECONDS = 0.1

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
        self._live = self._stream.isatty()
        self._clock = clock
        self._open = ""

    def __enter__(self) -> Reporter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._end_line()

    def say(self, text: str) -> None:
        """Write a line of its own."""
        self._end_line()
        self._stream.write(text + "\n")
        self._stream.flush()

    def phase(self, name: str) -> Progress:
        """Start a phase, and return what to call with its progress.

        A phase with nothing to do, or one that ends within a blink, is not mentioned.
        """
        self._end_line()
        began = shown = self._clock()
        finished = False

        def progress(done: int, total: int, seconds_left: float | None) -> None:
            nonlocal shown, finished
            now = self._clock()
            last = done >= total
            if finished or total == 0:
                return
            if last:
                finished = True
                if now - began >= 0.5:
                    took = duration(now - began)
                    self._write(f"{name}: {done} of {total} done, took {took}", ends=True)
                else:
                    self._end_line(forget=True)
                return
            if now - shown < (LIVE_SECONDS if self._live else PLAIN_SECONDS) and done:
                return
            shown = now
            left = "" if seconds_left is None else f", about {duration(seconds_left)} left"
            self._write(f"{name}: {done} of {total} ({100 * done // total}%){left}", ends=False)

        return progress

    def _write(self, text: str, ends: bool) -> None:
        if not self._live:
            self._stream.write(text + "\n")
        else:
            self._stream.write("\r" + text.ljust(len(self._open)) + ("\n" if ends else ""))
            self._open = "" if ends else text
        self._stream.flush()

    def _end_line(self, forget: bool = False) -> None:
        if self._open:
            self._stream.write("\r" + " " * len(self._open) + "\r" if forget else "\n")
            self._stream.flush()
            self._open = ""
