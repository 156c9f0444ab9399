"""Ctrl-C, and SIGTERM, which `ray job stop`, Kubernetes and Slurm send, end a program alike.

What there is to say is said when the signal comes: whoever sent SIGTERM may follow it with SIGKILL
a few seconds later, and ending in order can take longer.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from types import FrameType

_farewell = ""


def handle_interruptions(farewell: str) -> None:
    """Let SIGINT and SIGTERM write `farewell` on standard error and raise KeyboardInterrupt.

    SIGINT stays ignored where it is: a shell without job control starts what it puts in the
    background so. Without effect outside the main thread.
    """
    global _farewell
    _farewell = farewell
    treat_sigterm_as_interrupt()
    if _in_main_thread() and signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, _interrupt)


def treat_sigterm_as_interrupt() -> None:
    """Let SIGTERM do what SIGINT does; `ray.init` has a handler of its own: call this after it."""
    if _in_main_thread():
        signal.signal(signal.SIGTERM, _interrupt)


def say_farewell() -> None:
    """Write the farewell now, unless a signal has written it already."""
    global _farewell
    text, _farewell = _farewell, ""
    if text:
        # Past Python's buffer, which may be half-way through a write when a signal comes.
        with contextlib.suppress(OSError):
            os.write(sys.__stderr__.fileno() if sys.__stderr__ else 2, f"\n{text}\n".encode())


def _interrupt(number: int, frame: FrameType | None) -> None:
    say_farewell()
    raise KeyboardInterrupt


def _in_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()
