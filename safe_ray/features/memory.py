"""How a process that runs the trunk holds on to its memory."""

from __future__ import annotations

import contextlib
import ctypes

# mallopt's names for them, from glibc's malloc.h.
_TRIM_THRESHOLD, _MMAP_THRESHOLD, _ARENA_MAX = -1, -3, -8


def keep_freed_memory() -> None:
    """Let glibc keep what this process frees, instead of giving it back to the system.

    A trunk's intermediates are tens of megabytes each. glibc would map and unmap them again for
    each batch, and the page faults take a tenth of a CPU's time and more. It holds for the process
    from now on, so it is for processes that do nothing else. Does nothing where the C library is
    another one.
    """
    with contextlib.suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        # The arenas of threads cannot hold such blocks.
        mallopt(_ARENA_MAX, 1)
        # Older versions refuse more than half of what an arena of a thread may grow to.
        if mallopt(_MMAP_THRESHOLD, 2**30) or mallopt(_MMAP_THRESHOLD, 2**25):
            mallopt(_TRIM_THRESHOLD, 2**31 - 1)
