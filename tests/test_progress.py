"""What a person sees of progress, on a terminal and in a log file."""

from __future__ import annotations

import contextlib
import io
import os
import pty
import re
import subprocess
import sys

import pytest

from safe_ray.progress import PLAIN_SECONDS, Reporter, duration


@pytest.fixture(autouse=True)
def terminal_type(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "100")


class Terminal(io.StringIO):
    """A terminal wide enough that no line is wrapped."""

    def isatty(self) -> bool:
        return True

    def shown(self) -> list[str]:
        """The lines that are to be seen now: whatever was not erased or written over."""
        lines = [""]
        for part in re.split(r"(\x1b\[[0-9;?]*[A-Za-z]|\r|\n)", self.getvalue()):
            if part == "\n":
                lines.append("")
            elif part == "\r":
                lines[-1] = "\r" + lines[-1].removeprefix("\r")
            elif part == "\x1b[2K":
                lines[-1] = ""
            elif part.startswith("\x1b[") and part.endswith("A"):
                del lines[-int(part[2:-1] or 1) :]
            elif part and not part.startswith("\x1b"):
                lines[-1] = part if lines[-1].startswith("\r") else lines[-1] + part
        return [line.strip("\r").rstrip() for line in lines if line.strip()]


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0, "0 s"),
        (-3, "0 s"),
        (59.4, "59 s"),
        (59.6, "1 min 00 s"),
        (125, "2 min 05 s"),
        (12_000, "3 h 20 min"),
    ],
)
def test_durations_read_as_people_say_them(seconds: float, words: str):
    assert duration(seconds) == words


def test_a_log_file_gets_a_plain_line_now_and_then():
    stream, clock = io.StringIO(), Clock()
    with Reporter(stream, clock) as reporter:
        progress = reporter.phase("extracting features")
        for done in range(100):
            clock.now = done * 0.5
            progress(done, 200, 100.0 - done * 0.5)
    lines = stream.getvalue().splitlines()
    assert 49.5 / PLAIN_SECONDS - 1 <= len(lines) <= 49.5 / PLAIN_SECONDS + 2
    assert "\r" not in stream.getvalue()
    assert any("extracting features" in line and "of 200" in line for line in lines)
    assert any("left" in line for line in lines)


def test_a_terminal_gets_a_bar_that_goes_when_the_phase_ends():
    stream, clock = Terminal(), Clock()
    with Reporter(stream, clock) as reporter:
        progress = reporter.phase("searching [1, 2]")
        for done in range(11):
            clock.now = float(done)
            progress(done, 10, 10.0 - done)
            if done == 4:
                (bar,) = stream.shown()
                assert "searching [1, 2] ━" in bar
                assert bar.endswith(" 4/10 0:00:04 about 6 s left")
    assert stream.shown() == ["searching [1, 2]: 10 of 10 done, took 10 s"]


def test_a_terminal_that_cannot_move_its_cursor_gets_plain_lines(
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setenv("TERM", "dumb")
    stream, clock = Terminal(), Clock()
    with Reporter(stream, clock) as reporter:
        progress = reporter.phase("searching")
        clock.now = 10
        progress(1, 4, None)
    assert stream.getvalue() == "searching: 1 of 4 (25%)\n"


def test_a_phase_that_ends_within_a_blink_leaves_nothing_behind():
    stream, clock = Terminal(), Clock()
    with Reporter(stream, clock) as reporter:
        progress = reporter.phase("checking images")
        progress(1, 2, None)
        progress(2, 2, 0.0)
    assert stream.shown() == []


def test_an_unknown_rest_is_not_guessed():
    stream, clock = io.StringIO(), Clock()
    with Reporter(stream, clock) as reporter:
        progress = reporter.phase("searching")
        clock.now = 10
        progress(1, 4, None)
    assert "searching: 1 of 4 (25%)" in stream.getvalue()
    assert "left" not in stream.getvalue()


def test_a_phase_with_nothing_to_do_is_not_mentioned():
    stream, clock = io.StringIO(), Clock()
    with Reporter(stream, clock) as reporter:
        reporter.phase("checking images")(0, 0, None)
    assert stream.getvalue() == ""


def test_a_message_does_not_land_in_the_bar():
    stream, clock = Terminal(), Clock()
    with Reporter(stream, clock) as reporter:
        progress = reporter.phase("searching")
        clock.now = 1
        progress(1, 4, 3.0)
        reporter.say("2 candidates diverged.")
        clock.now = 2
        progress(2, 4, 2.0)
        said, bar = stream.shown()
    assert said == "2 candidates diverged."
    assert bar.endswith("2/4 0:00:02 about 2 s left")
    assert stream.shown() == ["2 candidates diverged."]


def test_a_bar_ends_with_the_work_even_if_nobody_finished_it():
    """On a real terminal, where others print meanwhile."""
    code = (
        "import sys, time\n"
        "from safe_ray.progress import Reporter\n"
        "with Reporter() as reporter:\n"
        "    progress = reporter.phase('searching')\n"
        "    for done in range(8):\n"
        "        progress(done, 10, None)\n"
        "        time.sleep(0.12)\n"
        "    print('from elsewhere', file=sys.stderr)\n"
        "    raise SystemExit(3)\n"
    )
    main, side = pty.openpty()
    process = subprocess.Popen([sys.executable, "-c", code], stdout=side, stderr=side)
    os.close(side)
    stream = Terminal()
    with contextlib.suppress(OSError):
        while part := os.read(main, 4096):
            stream.write(part.decode().replace("\r\n", "\n"))
    os.close(main)
    assert process.wait(60) == 3
    assert "━" in stream.getvalue()
    assert stream.shown() == ["from elsewhere"]
    # The cursor that the bar hid is back.
    assert stream.getvalue().rindex("\x1b[?25h") > stream.getvalue().rindex("\x1b[?25l")


def test_the_bar_is_closed_when_work_fails():
    stream, clock = Terminal(), Clock()

    def fail() -> None:
        with Reporter(stream, clock) as reporter:
            progress = reporter.phase("searching")
            clock.now = 1
            progress(1, 4, 3.0)
            raise ValueError("boom")

    with pytest.raises(ValueError, match="boom"):
        fail()
    assert stream.shown() == []
