"""What `make` shows while it installs. The environment's Python only prints what it is asked to."""

from __future__ import annotations

import contextlib
import os
import pty
import shutil
import subprocess
from pathlib import Path

import pytest

MAKEFILE = Path(__file__).parents[1] / "Makefile"
# `make test` tells the makes below it that they are not the first, and they say where they are.
ENVIRONMENT = {
    name: value
    for name, value in os.environ.items()
    if name not in {"MAKEFLAGS", "MFLAGS", "MAKELEVEL", "MAKEOVERRIDES"}
}


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    shutil.copy(MAKEFILE, tmp_path)
    for name in ("pyproject.toml", "constraints.txt"):
        (tmp_path / name).touch()
    python = tmp_path / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text('#!/bin/sh\necho python "$@"\n')
    python.chmod(0o755)
    return tmp_path


def on_a_terminal(command: list[str], folder: Path) -> list[str]:
    main, side = pty.openpty()
    process = subprocess.Popen(command, cwd=folder, stdout=side, stderr=side, env=ENVIRONMENT)
    os.close(side)
    written = b""
    with contextlib.suppress(OSError):
        while part := os.read(main, 4096):
            written += part
    os.close(main)
    assert process.wait(60) == 0
    return written.decode().splitlines()


def test_on_a_terminal_pip_shows_what_it_does_and_the_demo_how_long_it_takes(clone: Path):
    installing, pip, estimate, *_, demo = on_a_terminal(["make", "demo"], clone)
    assert "a few minutes" in installing
    assert pip.startswith("python -m pip install ")
    assert "--quiet" not in pip
    assert "minutes on 2 cores" in estimate
    assert demo == "python -m safe_ray.tune"


def test_in_a_log_pip_is_quiet_and_a_sentence_says_what_takes_so_long(clone: Path):
    said = subprocess.run(
        ["make", "demo"],
        cwd=clone,
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
        env=ENVIRONMENT,
    ).stdout.splitlines()
    assert "a few minutes" in said[0]
    assert said[1].startswith("python -m pip install --quiet ")


def test_what_is_installed_is_not_installed_again(clone: Path):
    on_a_terminal(["make", "demo"], clone)
    assert "minutes on 2 cores" in on_a_terminal(["make", "demo"], clone)[0]
