"""SIGTERM ends a program in two seconds, whatever it is doing."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

START = """
import hashlib, sys, threading, time
from pathlib import Path
from safe_ray.arguments import answer
from safe_ray.interruption import interrupt, last_act
from safe_ray.last_words import last_words

def working():
    print("working", flush=True)

def unwinds():
    working()
    time.sleep(600)

def tidies_up_for_ever():
    try:
        working()
        time.sleep(600)
    finally:
        time.sleep(600)

def computes():
    # Python code runs on this thread when it is done, in some hours.
    working()
    hashlib.pbkdf2_hmac("sha256", b"", b"", 2**31 - 1)

def swallows():
    said = []
    while True:
        try:
            said or said.append(working())
            time.sleep(600)
        except KeyboardInterrupt:
            pass

def work():
    words = last_words("nobody said why")
    with words as told, last_act(told), last_act(lambda: Path(sys.argv[2]).touch()):
        globals()[sys.argv[1]]()

sys.exit(answer(work, "To go on, do it again."))
"""


def start(what: str, folder: Path) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", START, what, str(folder / "acted")],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "working\n"
    watched = psutil.Process(process.pid)
    deadline = time.monotonic() + 60
    busy = watched.cpu_times().user + 0.5
    # Where it computes, the signal is to find it at that.
    while what == "computes" and watched.cpu_times().user < busy:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return process


@pytest.mark.parametrize("what", ["unwinds", "tidies_up_for_ever", "computes", "swallows"])
def test_sigterm_ends_it_with_its_farewell(what: str, tmp_path: Path):
    process = start(what, tmp_path)
    process.send_signal(signal.SIGTERM)
    began = time.monotonic()
    process.wait(60)
    # The process has a deadline of its own, of 1.5 s; the rest is for a busy machine.
    assert time.monotonic() - began < 10
    _, told = process.communicate(timeout=60)
    assert process.returncode == 130
    assert told.count("To go on, do it again.") == 1
    assert "nobody said why" not in told
    assert "Traceback" not in told
    assert (tmp_path / "acted").exists() == (what != "unwinds")


def test_ctrl_c_lets_it_tidy_up(tmp_path: Path):
    process = start("tidies_up_for_ever", tmp_path)
    process.send_signal(signal.SIGINT)
    time.sleep(3)
    assert process.poll() is None
    process.kill()
    _, told = process.communicate(timeout=60)
    assert told.count("To go on, do it again.") == 1


def test_a_process_that_was_forked_is_not_heard(tmp_path: Path):
    """What is sent to a child that shares the program's memory is not for the program."""
    code = (
        "import os, signal, sys, time\n"
        "from safe_ray.arguments import answer\n"
        "def work():\n"
        "    child = os.fork()\n"
        "    if not child:\n"
        "        signal.signal(signal.SIGTERM, lambda *_: os._exit(0))\n"
        "        time.sleep(600)\n"
        "    time.sleep(0.5)\n"
        "    os.kill(child, signal.SIGTERM)\n"
        "    os.waitpid(child, 0)\n"
        "    time.sleep(3)\n"
        "    return 7\n"
        "sys.exit(answer(work))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], timeout=60, check=False)
    assert done.returncode == 7
