"""Ctrl-C, and SIGTERM, which `ray job stop`, Kubernetes and Slurm send, end a program alike.

What there is to say is said when the signal comes: whoever sent SIGTERM may follow it with SIGKILL
a few seconds later, and ending in order can take longer. So after SIGTERM a thread counts: a
program that has not ended in order by then is ended, whatever it is doing. Python runs a signal's
handler on the main thread alone, which may be computing or waiting in code that knows no Python;
the thread hears of the signal by a pipe that the interpreter itself writes to at once. A program
that unwinds in time ends without what Python and Ray tidy up at their exit, which can take seconds:
Ray gives up what belongs to a driver whose process is gone.
"""

from __future__ import annotations

import contextlib
import faulthandler
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType

SECONDS_TO_END = 1.5
"""After SIGTERM. `ray job stop` waits for three seconds, unless told otherwise."""
EXIT_INTERRUPTED = 130
_GRACE_SECONDS = 0.3

_farewell = ""
_last_acts: list[Callable[[], None]] = []
_watched = _terminated = False


def handle_interruptions(farewell: str) -> None:
    """Let SIGINT and SIGTERM write `farewell` on standard error and raise KeyboardInterrupt.

    A program that has not ended `SECONDS_TO_END` after SIGTERM is ended, with exit status 130.
    SIGINT stays ignored where it is: a shell without job control starts what it puts in the
    background so. Without effect outside the main thread.
    """
    global _farewell
    _farewell = farewell
    treat_sigterm_as_interrupt()
    if _in_main_thread():
        if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
            signal.signal(signal.SIGINT, _interrupt)
        _watch_signals()


def treat_sigterm_as_interrupt() -> None:
    """Let SIGTERM do what SIGINT does; `ray.init` has a handler of its own: call this after it."""
    if _in_main_thread():
        signal.signal(signal.SIGTERM, _interrupt)


def interrupt(farewell: str) -> None:
    """Interrupt this program as SIGTERM would, from any thread, with other last words."""
    global _farewell
    _farewell = farewell
    os.kill(os.getpid(), signal.SIGTERM)


@contextlib.contextmanager
def last_act(act: Callable[[], None]) -> Iterator[None]:
    """Have `act` called if the program is ended within the block without unwinding it.

    It is called on another thread, and must be done within a blink.
    """
    _last_acts.append(act)
    try:
        yield
    finally:
        _last_acts.remove(act)


def end_if_terminated() -> None:
    """End the process here if it was SIGTERM that interrupted it."""
    if _terminated:
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError):
                stream.flush()
        _end()


def say_farewell() -> None:
    """Write the farewell now, unless a signal has written it already."""
    global _farewell
    text, _farewell = _farewell, ""
    if text:
        # Past Python's buffer, which may be half-way through a write when a signal comes.
        with contextlib.suppress(OSError):
            os.write(sys.__stderr__.fileno() if sys.__stderr__ else 2, f"\n{text}\n".encode())


def _interrupt(number: int, frame: FrameType | None) -> None:
    global _terminated
    _terminated = _terminated or number == signal.SIGTERM
    say_farewell()
    raise KeyboardInterrupt


def _watch_signals() -> None:
    """Start the thread that hears of signals, once a process."""
    global _watched
    if _watched:
        return
    _watched = True
    heard, told = os.pipe()
    # A process that was forked would write of its own signals into the same pipe.
    os.register_at_fork(after_in_child=_hear_nothing)
    os.set_blocking(told, False)
    signal.set_wakeup_fd(told, warn_on_full_buffer=False)
    threading.Thread(target=_end_in_time, args=(heard,), name="sigterm-watch", daemon=True).start()


def _hear_nothing() -> None:
    with contextlib.suppress(ValueError):
        signal.set_wakeup_fd(-1)


def _end_in_time(heard: int) -> None:
    while True:
        if signal.SIGTERM in os.read(heard, 1):
            break
    say_farewell()
    # It needs no word from Python, should somebody keep Python's lock.
    with open(os.devnull, "w") as nowhere:
        faulthandler.dump_traceback_later(SECONDS_TO_END + _GRACE_SECONDS, exit=True, file=nowhere)
        time.sleep(SECONDS_TO_END)
        _end()


def _end() -> None:
    for act in reversed(list(_last_acts)):
        with contextlib.suppress(Exception):
            act()
    os._exit(EXIT_INTERRUPTED)


def _in_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()
