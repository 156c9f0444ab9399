"""What Tune has kept of a trial that ended without a word."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

from safe_ray.search.tuning import last_error


def test_the_last_error_of_several_is_read(tmp_path: Path) -> None:
    file = tmp_path / "error.txt"
    file.write_text("Failure # 1\nits node died\nFailure # 2\nlow on memory\n")
    assert last_error(SimpleNamespace(error_file=str(file))) == " 2\nlow on memory\n"


def test_a_trial_that_died_before_it_began_or_left_no_file_has_none(tmp_path: Path) -> None:
    assert last_error(None) == ""
    assert last_error(SimpleNamespace(error_file=None)) == ""
    assert last_error(SimpleNamespace(error_file=str(tmp_path / "gone.txt"))) == ""
