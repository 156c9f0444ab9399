"""Who works in a sweep's folder: a lock of the file system, and an owner file with a heartbeat.

On one machine the lock decides: it goes when the process that holds it does. Between machines it
may outlive a machine that died (NFSv4 keeps a lock until its lease runs out), may hold on one
machine only, or may not be there at all (FUSE). So the owner also writes who it is into a file, and
counts a beat in it now and then. A command on another machine watches the file: one beat, and it
leaves the sweep alone; none for a stated time, and it takes the sweep over. Nobody compares clocks.
An owner that finds somebody else's name in the file, after it was cut off from the storage for
example, is no owner any more, and ends.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TextIO

from safe_ray.errors import InputError
from safe_ray.files import read_record, unwritable, write_record
from safe_ray.interruption import interrupt, last_act

LOCK = ".lock"
OWNER = ".owner.json"
BEATS_IN_SILENCE = 6
"""How many beats an owner has missed when it counts as dead."""

_BOOT = Path("/proc/sys/kernel/random/boot_id")
_PROCESSES = Path("/proc/self/ns/pid")
_LOOK_SECONDS = 0.5
_SETTLE_SECONDS = 1.0


@dataclass(frozen=True)
class Owner:
    """Who works in a sweep's folder.

    Attributes:
        token: tells this owner from all others.
        host: the machine's name.
        kernel: tells the running kernel of a machine from all others.
        processes: tells the numbering of processes that `pid` is of.
        pid: the process.
        silence: seconds without a beat after which the owner counts as dead.
        beat: how many beats there were.
    """

    token: str
    host: str
    kernel: str
    processes: str
    pid: int
    silence: float
    beat: int = 0

    @staticmethod
    def this_process(silence: float) -> Owner:
        """Return what this process calls itself when it becomes an owner."""
        return Owner(
            token=uuid.uuid4().hex,
            host=socket.gethostname(),
            kernel=_kernel(),
            processes=_processes(),
            pid=os.getpid(),
            silence=silence,
        )

    @property
    def name(self) -> str:
        """The process and the machine in words."""
        return f"process {self.pid} on {self.host}"

    @property
    def is_near(self) -> bool:
        """Whether it runs, or ran, under the kernel that runs this process."""
        return self.kernel == _kernel()

    @property
    def is_gone(self) -> bool:
        """Whether it is known to have ended."""
        if not self.is_near or self.processes != _processes():
            return False
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return True
        except OSError:
            return False
        return False


def _kernel() -> str:
    try:
        return _BOOT.read_text().strip()
    except OSError:
        return socket.gethostname()


def _processes() -> str:
    try:
        return str(_PROCESSES.readlink())
    except OSError:
        return ""


@contextlib.contextmanager
def owning(
    folder: Path,
    silence: float,
    say: Callable[[str], None],
    leave: Callable[[], None] = lambda: None,
) -> Iterator[None]:
    """Own a folder against all other processes for as long as the block lasts.

    If another process takes it over meanwhile, this one is interrupted, and says so.

    Args:
        folder: a sweep's; it is made if it is not there.
        silence: seconds without a beat after which an owner on another machine counts as dead.
        say: is told what is waited for, and what is taken over.
        leave: is called at the end, when the folder is still locked and has no owner any more.

    Raises:
        InputError: the folder cannot be written, or another process owns it.
    """
    lock = _open_lock(folder)
    try:
        lock = _become(folder, lock, silence, say)
        owner = Owner.this_process(silence)
        if not _write_first(folder, owner):
            raise _taken(folder, _read(folder))
        heart = _Heart(folder, owner)
        try:
            with last_act(heart.stop):
                yield
        finally:
            heart.stop()
            leave()
    finally:
        lock.close()


def _open_lock(folder: Path) -> TextIO:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        return open(folder / LOCK, "a")
    except OSError as error:
        raise unwritable(folder, error) from error


def _become(folder: Path, lock: TextIO, silence: float, say: Callable[[str], None]) -> TextIO:
    """Wait until nobody owns the folder, and return the lock that is then held.

    What a dead owner has left is removed.
    """
    try:
        held = _hold(lock, folder)
    except OSError as error:
        say(
            f"The file system of {folder} cannot lock files ({error.strerror}): the sweep is "
            f"guarded by its file {OWNER} alone, so do not start it twice within a second, or "
            "name a folder on a file system with locks with storage=<folder>."
        )
        owner = _read(folder)
        if owner is not None and not owner.is_gone:
            if owner.is_near and owner.processes == _processes():
                raise _taken(folder, owner) from None
            _wait_for_silence(folder, owner, silence, say)
        _clear(folder, owner)
        return lock
    owner = _read(folder)
    if held:
        # Under one kernel the lock says all: whoever had it before has ended.
        if owner is not None and not owner.is_near:
            _wait_for_silence(folder, owner, silence, say)
        _clear(folder, owner)
        return lock
    if owner is None or owner.is_near:
        raise _taken(folder, owner)
    _wait_for_silence(folder, owner, silence, say)
    # The lock is still a dead machine's: another file has one of its own.
    with contextlib.suppress(FileNotFoundError):
        (folder / LOCK).unlink()
    lock.close()
    lock = _open_lock(folder)
    if not _hold(lock, folder):
        raise _taken(folder, _read(folder))
    _clear(folder, owner)
    return lock


def _hold(lock: TextIO, folder: Path) -> bool:
    """Lock the folder; False if another process has it, or has just left it."""
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # One that was refused meanwhile has removed the file that was opened here.
        return os.path.samestat(os.fstat(lock.fileno()), (folder / LOCK).stat())
    except (BlockingIOError, FileNotFoundError):
        return False


def _read(folder: Path) -> Owner | None:
    """Return who has written itself into the folder; None if nobody has, legibly."""
    try:
        record = read_record(folder / OWNER)
        return None if record is None else Owner(**record)
    except (InputError, TypeError):
        return None


def _clear(folder: Path, owner: Owner | None) -> None:
    """Remove the file of an owner that is dead, unless it is somebody else's by now."""
    found = _read(folder)
    if found is None or (owner is not None and found.token == owner.token):
        with contextlib.suppress(OSError):
            (folder / OWNER).unlink()


def _write_first(folder: Path, owner: Owner) -> bool:
    """Write the owner's file; False if another process was faster."""
    temporary = folder / f"{OWNER}.{owner.token[:8]}"
    try:
        write_record(temporary, asdict(owner))
        try:
            # Unlike a rename, a link fails where there is a file already.
            os.link(temporary, folder / OWNER)
        except FileExistsError:
            return False
        except OSError:
            return _write_without_links(folder, owner)
    except OSError as error:
        raise unwritable(folder / OWNER, error) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()
    return True


def _write_without_links(folder: Path, owner: Owner) -> bool:
    """Do the same where there are no hard links: of two at once, the last one stays."""
    if (folder / OWNER).exists():
        return False
    write_record(folder / OWNER, asdict(owner))
    time.sleep(_SETTLE_SECONDS)
    found = _read(folder)
    return found is not None and found.token == owner.token


def _wait_for_silence(
    folder: Path, owner: Owner, silence: float, say: Callable[[str], None]
) -> None:
    """Return when an owner on another machine has given no sign of life for long enough.

    Raises:
        InputError: it gave one, or another process has become the owner.
    """
    silence = max(silence, owner.silence)
    say(
        f"The sweep {folder.name!r} in {folder} was being run by {owner.name}: if nothing is heard "
        f"from there for {silence:g} s, this command takes over."
    )
    began = time.monotonic()
    while time.monotonic() - began < silence:
        time.sleep(min(_LOOK_SECONDS, silence / 10))
        found = _read(folder)
        if found is None and not (folder / OWNER).exists():
            return
        if found is not None and found != owner:
            raise _taken(folder, found)
    say(
        f"Nothing was heard from {owner.name} for {silence:g} s: this command takes the sweep over."
    )


def _taken(folder: Path, owner: Owner | None) -> InputError:
    who = "another process" if owner is None else f"another process ({owner.name})"
    return InputError(
        f"The sweep {folder.name!r} in {folder} is being run by {who}: wait for it, or choose "
        "another name with sweep=<name>."
    )


class _Heart:
    """Beats in a thread of its own, until it is stopped or finds that the folder is another's."""

    def __init__(self, folder: Path, owner: Owner) -> None:
        self._folder = folder
        self._owner = owner
        self._stopped = threading.Event()
        self._writing = threading.Lock()
        threading.Thread(target=self._run, name="sweep-owner", daemon=True).start()

    def stop(self) -> None:
        """End the beat, and remove the owner's file; again does nothing."""
        self._stopped.set()
        with self._writing:
            found = _read(self._folder)
            if found is not None and found.token == self._owner.token:
                with contextlib.suppress(OSError):
                    (self._folder / OWNER).unlink()

    def _run(self) -> None:
        while not self._stopped.wait(self._owner.silence / BEATS_IN_SILENCE):
            with self._writing:
                if self._stopped.is_set():
                    return
                with contextlib.suppress(InputError):
                    if not self._beat():
                        break
        else:
            return
        interrupt(
            f"safe_ray: The sweep {self._folder.name!r} in {self._folder} was taken over by "
            "another command, since nothing was heard from this one: leave the other one alone, or "
            "end it and give this command again."
        )

    def _beat(self) -> bool:
        """Count a beat; False if the folder is another's.

        Raises:
            InputError: the folder cannot be reached now.
        """
        record = read_record(self._folder / OWNER)
        if record is not None and record.get("token") != self._owner.token:
            return False
        self._owner = replace(self._owner, beat=self._owner.beat + 1)
        write_record(self._folder / OWNER, asdict(self._owner))
        return True
