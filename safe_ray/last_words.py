"""A sentence for the case that the program has no chance to say one.

Ray ends a program at once, from its C++ core, when Ray's own process on the machine has died, and
the operating system ends one that takes too much memory. No exception is raised then. So a shell
waits at the end of a pipe: when the pipe closes without a word, the program is gone, and the shell
speaks for it.
"""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Callable, Iterator

_WATCH = """trap '' INT TERM HUP; read -r word || printf '\\n%s\\n' "$1" >&2"""


@contextlib.contextmanager
def last_words(sentence: str) -> Iterator[Callable[[], None]]:
    """Have `sentence` written on standard error if the program ends within the block untold.

    Yields:
        What to call where the program ends within the block and has said why.
    """
    try:
        watcher = subprocess.Popen(
            ["/bin/sh", "-c", _WATCH, "sh", sentence],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            text=True,
            start_new_session=True,
        )
    except OSError:
        # Where there is no shell, there are no last words.
        yield lambda: None
        return

    def told() -> None:
        with contextlib.suppress(OSError, ValueError):
            watcher.communicate("alive\n")

    try:
        yield told
    finally:
        told()
