"""One parser for all commands: what it takes, what it refuses, and how commands end."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import safe_ray
from safe_ray.arguments import Option, answer, help_lines, parse
from safe_ray.errors import InputError

ROOT = Path(safe_ray.__file__).resolve().parent.parent
OPTIONS = (
    Option("--force", "do it"),
    Option("--dir", "where", "DIR"),
    Option("--shots", "how many", "NUMBERS", many=True),
)


def test_options_are_told_from_the_rest():
    given = parse(["a", "--force", "--dir", "x", "b", "--dir=y", "--shots", "1", "2"], OPTIONS)
    assert given.flags == {"--force"}
    assert given.value("--dir") == "y"
    assert given.values["--shots"] == ["1", "2"]
    assert given.value("--help") is None
    assert given.rest == ("a", "b")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--forse"], "no option --forse.*mean '--force'"),
        (["--dir"], "--dir needs a value: write --dir <dir>"),
        (["--dir="], "--dir needs a value"),
        (["--dir", "--force"], "--dir needs a value"),
        (["--shots"], "--shots needs a value"),
        (["--force=yes"], "--force takes no value"),
    ],
)
def test_a_mistake_names_the_option_and_the_remedy(arguments: list[str], words: str):
    with pytest.raises(InputError, match=words):
        parse(arguments, OPTIONS)


def test_every_option_has_a_line():
    assert list(help_lines(OPTIONS)) == [
        "  --force           do it",
        "  --dir DIR         where",
        "  --shots NUMBERS   how many",
    ]


def test_a_mistake_and_an_interruption_have_their_statuses(capfd: pytest.CaptureFixture[str]):
    def mistake() -> int:
        raise InputError("no.")

    def interrupted() -> int:
        raise KeyboardInterrupt

    assert answer(lambda: 0) == 0
    assert answer(mistake) == 2
    assert answer(interrupted, "Stopped.") == 130
    assert capfd.readouterr().err == "safe_ray: no.\n\nStopped.\n"


@pytest.mark.parametrize("module", ["safe_ray.tune", "safe_ray.datasets", "pipelines.benchmark"])
def test_help_that_nobody_reads_ends_quietly(module: str):
    """As in `--help | true`: the other end of the pipe is closed before anything is written."""
    command = subprocess.Popen(
        [sys.executable, "-m", module, "--help"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )
    assert command.stdout is not None
    assert command.stderr is not None
    command.stdout.close()
    assert command.stderr.read() == ""
    assert command.wait(timeout=60) == 141


def test_a_broken_connection_is_not_taken_for_a_closed_pipe():
    def lost() -> int:
        raise BrokenPipeError("of a socket")

    with pytest.raises(BrokenPipeError):
        answer(lost)
