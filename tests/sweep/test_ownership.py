"""Who owns a sweep's folder: a lock, an owner file with a beat, and what comes after silence."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from safe_ray.errors import InputError
from safe_ray.files import read_record, write_record
from safe_ray.sweep.ownership import LOCK, OWNER, Owner, owning

SILENCE = 1.5


def elsewhere(folder: Path, pid: int = 1, beat: int = 0) -> Owner:
    """Leave the owner file of a process on another machine."""
    owner = replace(
        Owner.this_process(SILENCE), host="head-0", kernel="another", pid=pid, beat=beat
    )
    folder.mkdir(parents=True, exist_ok=True)
    write_record(folder / OWNER, asdict(owner))
    return owner


@contextlib.contextmanager
def beating(folder: Path, owner: Owner) -> Iterator[None]:
    """Let an owner on another machine beat."""
    ended = threading.Event()

    def beat() -> None:
        number = owner.beat
        while not ended.wait(0.1):
            number += 1
            write_record(folder / OWNER, asdict(replace(owner, beat=number)))

    thread = threading.Thread(target=beat)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the folder's lock from another process, as a file system does for a dead machine."""
    folder.mkdir(parents=True, exist_ok=True)
    code = (
        "import fcntl, sys, time\n"
        "lock = open(sys.argv[1], 'a')\n"
        "fcntl.flock(lock, fcntl.LOCK_EX)\n"
        "print('held', flush=True)\n"
        "time.sleep(600)\n"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", code, str(folder / LOCK)], stdout=subprocess.PIPE, text=True
    )
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        yield
    finally:
        holder.kill()
        holder.communicate()


def test_an_owner_beats_while_it_owns_and_leaves_no_file(tmp_path: Path) -> None:
    said: list[str] = []
    with owning(tmp_path, 0.6, said.append):
        first = read_record(tmp_path / OWNER)
        deadline = time.monotonic() + 60
        while (now := read_record(tmp_path / OWNER)) == first:
            assert time.monotonic() < deadline, "there is no beat"
            time.sleep(0.05)
        assert first is not None
        assert now is not None
        assert now["token"] == first["token"]
        assert now["beat"] > first["beat"]
        assert now["pid"] == os.getpid()
    assert not (tmp_path / OWNER).exists()
    assert said == []


def test_two_on_one_machine_are_told_apart_at_once(tmp_path: Path) -> None:
    with owning(tmp_path, 60, print):
        began = time.monotonic()
        with (
            pytest.raises(InputError, match=rf"another process \(process {os.getpid()} on "),
            owning(tmp_path, 60, print),
        ):
            pass
        assert time.monotonic() - began < 20
        assert (tmp_path / OWNER).exists()


def test_what_a_killed_owner_of_this_machine_left_is_taken_over_at_once(tmp_path: Path) -> None:
    code = (
        "import sys, time\n"
        "from pathlib import Path\n"
        "from safe_ray.sweep.ownership import owning\n"
        "with owning(Path(sys.argv[1]), 60, print):\n"
        "    print('owned', flush=True)\n"
        "    time.sleep(600)\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "owned\n"
    process.kill()
    process.communicate()
    left = read_record(tmp_path / OWNER)
    said: list[str] = []
    with owning(tmp_path, 60, said.append):
        now = read_record(tmp_path / OWNER)
    assert left is not None
    assert now is not None
    assert now["token"] != left["token"]
    assert said == []


def test_a_living_owner_on_another_machine_is_left_alone(tmp_path: Path) -> None:
    """Its lock may hold on its own machine only."""
    said: list[str] = []
    owner = elsewhere(tmp_path, pid=17)
    with (
        beating(tmp_path, owner),
        pytest.raises(InputError, match=r"is being run by another process \(process 17 on head-0"),
        owning(tmp_path, SILENCE, said.append),
    ):
        pass
    record = read_record(tmp_path / OWNER)
    assert record is not None
    assert record["token"] == owner.token
    assert len(said) == 1


@pytest.mark.parametrize("lock_outlives_it", [True, False])
def test_a_silent_owner_on_another_machine_is_taken_over_in_words(
    tmp_path: Path, lock_outlives_it: bool
) -> None:
    said: list[str] = []
    elsewhere(tmp_path, pid=17)
    held = locked(tmp_path) if lock_outlives_it else contextlib.nullcontext()
    began = time.monotonic()
    with held, owning(tmp_path, SILENCE, said.append):
        assert time.monotonic() - began >= SILENCE
        record = read_record(tmp_path / OWNER)
        assert record is not None
        assert record["pid"] == os.getpid()
        # The folder is locked against the next one, too.
        with pytest.raises(InputError, match="being run by"), owning(tmp_path, 1, print):
            pass
    waiting, taking = said
    assert "process 17 on head-0" in waiting
    assert "for 1.5 s" in waiting
    assert "takes the sweep over" in taking


def test_the_longer_silence_of_the_two_counts(tmp_path: Path) -> None:
    owner = elsewhere(tmp_path)
    began = time.monotonic()
    with owning(tmp_path, 0.1, lambda sentence: None):
        assert time.monotonic() - began >= owner.silence


def test_a_lock_whose_owner_is_not_known_is_respected(tmp_path: Path) -> None:
    with (
        locked(tmp_path),
        pytest.raises(InputError, match="being run by another process: wait"),
        owning(tmp_path, 0.1, print),
    ):
        pass


@pytest.fixture(params=[errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP], ids=os.strerror)
def without_locks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """A file system that has no locks, as those in user space may have none."""

    def flock(*_: Any) -> None:
        raise OSError(request.param, os.strerror(request.param))

    monkeypatch.setattr(fcntl, "flock", flock)
    return os.strerror(request.param)


def test_without_locks_the_owner_file_guards_alone_and_that_is_said(
    without_locks: str, tmp_path: Path
) -> None:
    said: list[str] = []
    with owning(tmp_path, SILENCE, said.append):
        with pytest.raises(InputError, match="being run by"), owning(tmp_path, SILENCE, print):
            pass
        (sentence,) = said
        for words in (str(tmp_path), without_locks, "cannot lock files", "storage=<folder>"):
            assert words in sentence
    elsewhere(tmp_path)
    with owning(tmp_path, SILENCE, said.append):
        assert "takes the sweep over" in said[-1]


def test_a_process_of_this_machine_that_ended_is_known_without_locks(
    without_locks: str, tmp_path: Path
) -> None:
    ended = subprocess.Popen(["true"])
    ended.wait()
    write_record(tmp_path / OWNER, asdict(replace(Owner.this_process(60), pid=ended.pid)))
    said: list[str] = []
    with owning(tmp_path, 60, said.append):
        assert len(said) == 1


def test_a_torn_owner_file_is_nobodys(tmp_path: Path) -> None:
    (tmp_path / OWNER).write_text('{"token": "a')
    with owning(tmp_path, 60, print):
        record = json.loads((tmp_path / OWNER).read_text())
        assert record["pid"] == os.getpid()


def test_an_owner_that_was_taken_over_ends_and_says_so(tmp_path: Path) -> None:
    code = (
        "import sys, time\n"
        "from pathlib import Path\n"
        "from safe_ray.arguments import answer\n"
        "from safe_ray.sweep.ownership import owning\n"
        "def work():\n"
        "    with owning(Path(sys.argv[1]), 0.6, print):\n"
        "        print('owned', flush=True)\n"
        "        time.sleep(600)\n"
        "sys.exit(answer(work))\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "owned\n"
    other = elsewhere(tmp_path)
    _, told = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "was taken over by another command" in told
    assert "Traceback" not in told
    record = read_record(tmp_path / OWNER)
    assert record is not None
    assert record["token"] == other.token


def test_sigterm_leaves_no_owner_file_even_if_the_program_does_not_unwind(tmp_path: Path) -> None:
    code = (
        "import sys, time\n"
        "from pathlib import Path\n"
        "from safe_ray.arguments import answer\n"
        "from safe_ray.sweep.ownership import owning\n"
        "def work():\n"
        "    with owning(Path(sys.argv[1]), 60, print):\n"
        "        print('owned', flush=True)\n"
        "        try:\n"
        "            time.sleep(600)\n"
        "        finally:\n"
        "            time.sleep(600)\n"
        "sys.exit(answer(work))\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "owned\n"
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    assert process.returncode == 130
    assert not (tmp_path / OWNER).exists()
