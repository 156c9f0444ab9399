"""A program that cannot speak any more is spoken for; one that ends in order is not."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

PROGRAM = """
import os, signal, sys
from safe_ray.last_words import last_words
with last_words("it's gone; 100% of it"):
    print("working", flush=True)
    {ending}
"""


def ended(ending: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", PROGRAM.format(ending=ending)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.mark.parametrize("ending", ["os._exit(1)", "os.kill(os.getpid(), signal.SIGKILL)"])
def test_a_program_that_is_ended_leaves_its_sentence(ending: str) -> None:
    assert ended(ending).stderr.strip() == "it's gone; 100% of it"


@pytest.mark.parametrize("ending", ["pass", "sys.exit(3)"])
def test_a_program_that_ends_itself_does_not(ending: str) -> None:
    assert ended(ending).stderr == ""


def test_ctrl_c_reaches_the_program_alone() -> None:
    """A terminal sends SIGINT to the whole group of processes."""
    program = PROGRAM.format(ending="import time; time.sleep(60)")
    # Set before the first word, so that the signal finds it wherever the program is.
    handler = "import os, signal\nsignal.signal(signal.SIGINT, lambda *_: os._exit(1))\n"
    process = subprocess.Popen(
        [
            sys.executable,
            "-c",
            handler + program,
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "working\n"
    os.killpg(process.pid, signal.SIGINT)
    _, told = process.communicate(timeout=30)
    assert told.strip() == "it's gone; 100% of it"
