"""What a person sees of progress, on a terminal and in a log file."""

from __future__ import annotations

import io

import pytest

from safe_ray.progress import PLAIN_SECONDS, Reporter, duration


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


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


def test_a_terminal_gets_one_line_that_is_written_over():
    stream, clock = Terminal(), Clock()
    with Reporter(stream, clock) as reporter:
        progress = reporter.phase("searching")
        for done in range(11):
            clock.now = float(done)
            progress(done, 10, 10.0 - done)
    text = stream.getvalue()
    assert text.count("\n") == 1
    assert text.splitlines()[-1].endswith("searching: 10 of 10 done, took 10 s") or (
        "searching: 10 of 10 done, took 10 s" in text.rsplit("\r", 1)[-1]
    )


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


def test_a_message_does_not_land_in_the_live_line():
    stream, clock = Terminal(), Clock()
    with Reporter(stream, clock) as reporter:
        progress = reporter.phase("searching")
        clock.now = 1
        progress(1, 4, 3.0)
        reporter.say("2 candidates diverged.")
    assert "\n2 candidates diverged.\n" in stream.getvalue()


def test_the_live_line_is_closed_when_work_fails():
    stream, clock = Terminal(), Clock()

    def fail() -> None:
        with Reporter(stream, clock) as reporter:
            progress = reporter.phase("searching")
            clock.now = 1
            progress(1, 4, 3.0)
            raise ValueError("boom")

    with pytest.raises(ValueError, match="boom"):
        fail()
    assert stream.getvalue().endswith("\n")
