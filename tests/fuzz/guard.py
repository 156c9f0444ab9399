"""What no reader may do, whatever it reads: watched while it does."""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

SECONDS = 5.0
"""Of the processor, so that a busy machine hangs nobody; the clock gets twelve times as long."""
GROWTH = 1536 * 2**20
"""Bytes of memory that one case may take beyond what the process ever had."""

_FORBIDDEN = (
    "pickle.find_class",
    "subprocess.Popen",
    "os.system",
    "os.exec",
    "os.posix_spawn",
    "os.fork",
    "os.forkpty",
    "ctypes.dlopen",
)
_WRITES = ("os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.symlink", "os.link", "os.truncate")
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


class Hang(BaseException):
    """A case took too long; nothing in between may catch it."""


@dataclass
class Watch:
    """What a case has done that it may not.

    Attributes:
        folder: the only one in which it may write.
        secret: a folder beside it, in which it may not even read.
        crimes: in words.
    """

    folder: str
    secret: str
    crimes: list[str] = field(default_factory=list)


_watch: Watch | None = None
_hooked = False


def _hook(event: str, arguments: tuple[Any, ...]) -> None:
    watch = _watch
    if watch is None:
        return
    if event in _FORBIDDEN:
        watch.crimes.append(f"{event}{arguments[:2]!r}")
    elif event == "open":
        path, _, flags = arguments
        if not isinstance(path, str | bytes):
            return
        flags = flags if isinstance(flags, int) else 0
        place = _place(path, follows=not flags & os.O_NOFOLLOW)
        writes = bool(flags & _WRITING)
        if place.startswith(watch.secret):
            watch.crimes.append(f"it opened {place}")
        elif writes and not place.startswith((watch.folder, "/dev/")):
            watch.crimes.append(f"it opened {place} to write")
    elif event in _WRITES:
        for argument in arguments:
            if isinstance(argument, str | bytes) and os.fsdecode(argument).startswith("/"):
                place = _place(argument, follows=False)
                if not place.startswith(watch.folder):
                    watch.crimes.append(f"{event} of {place}")


def _place(path: str | bytes, follows: bool) -> str:
    """Where a path leads, with its last link or without."""
    text = os.fsdecode(path)
    if follows:
        return os.path.realpath(text)
    folder, _, name = text.rpartition("/")
    return f"{os.path.realpath(folder or '.')}/{name}"


@contextlib.contextmanager
def watched(folder: Path, secret: Path) -> Iterator[Watch]:
    """Watch the block: what it opens and starts, its time and its memory.

    Raises:
        Hang: it takes too long.
    """
    global _watch, _hooked
    if not _hooked:
        sys.addaudithook(_hook)
        _hooked = True
    watch = Watch(os.path.realpath(folder), os.path.realpath(secret))
    peak = _peak()
    beside = sorted(folder.parent.iterdir())
    with _limited():
        _watch = watch
        try:
            yield watch
        finally:
            _watch = None
    if _peak() - peak > GROWTH:
        watch.crimes.append(f"it took {(_peak() - peak) >> 20} MiB of memory")
    if sorted(folder.parent.iterdir()) != beside:
        watch.crimes.append("it left something beside its folder")


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


@contextlib.contextmanager
def _limited() -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, frame: Any) -> None:
        raise Hang(f"it took more than {SECONDS:.0f} s")

    before = {each: signal.signal(each, stop) for each in (signal.SIGPROF, signal.SIGALRM)}
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    alarm = signal.setitimer(signal.ITIMER_REAL, 12 * SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.setitimer(signal.ITIMER_REAL, *alarm)
        for each, handler in before.items():
            signal.signal(each, handler)
