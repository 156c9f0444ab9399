from __future__ import annotations

import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from safe_ray.tracking.source import command_line, source_tags


def test_the_command_can_be_pasted_again() -> None:
    arguments = ["/somewhere/tune.py", "sweep=it", "data=my photos"]
    text = command_line("safe_ray.tune", arguments)
    assert text == "python -m safe_ray.tune sweep=it 'data=my photos'"
    assert shlex.split(command_line(None, arguments)) == arguments


def test_a_program_is_named_by_its_module() -> None:
    said = subprocess.run(
        [sys.executable, "-m", "tests.tracking.say_source", "tracking.uri=http://me:hidden@host"],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    ).stdout
    lines = dict(line.split("\t") for line in said.splitlines())
    assert lines["mlflow.source.name"] == "tests.tracking.say_source"
    assert lines["mlflow.source.type"] == "LOCAL"
    assert lines["safe_ray.command"].endswith("tracking.uri=http://me:***@host")


def test_a_user_without_a_name_has_no_tag(monkeypatch: pytest.MonkeyPatch) -> None:
    def nobody() -> str:
        raise KeyError("getpwuid(): uid not found: 4711")

    monkeypatch.setattr("getpass.getuser", nobody)
    assert "mlflow.user" not in source_tags()
