"""SIGTERM, which `ray job stop`, Kubernetes and Slurm send, ends a sweep as Ctrl-C does."""

from __future__ import annotations

import signal
import threading
from types import FrameType


def treat_sigterm_as_interrupt() -> None:
    """Let SIGTERM do what SIGINT does at that moment; without effect outside the main thread.

    Whoever handles SIGINT meanwhile, such as Ray Tune, which saves its state first, handles
    SIGTERM too. `ray.init` puts a handler of its own in place: call this again after it.
    """
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, _interrupt)


def _interrupt(number: int, frame: FrameType | None) -> None:
    # A shell without job control starts background processes with SIGINT ignored.
    if signal.getsignal(signal.SIGINT) in (signal.SIG_IGN, signal.SIG_DFL, None):
        raise KeyboardInterrupt
    signal.raise_signal(signal.SIGINT)
