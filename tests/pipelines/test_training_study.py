"""Settings of training, each compared to the same baseline by halves of the data sets."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipelines.suites import load_suite, plan
from pipelines.training_study import SETTINGS, main, report
from tests.comparison.results import records, written


@pytest.mark.parametrize("setting", SETTINGS)
def test_every_setting_is_one_that_a_sweep_takes(setting: str) -> None:
    suite = load_suite("embedded_short")
    base, other = plan(suite, []), plan(suite, list(SETTINGS[setting]))
    assert base.tasks == other.tasks
    changed = [one != two for one, two in zip(base.sweeps, other.sweeps, strict=True)]
    assert all(changed) == (setting != "base")


def test_a_setting_that_gains_on_every_task_gains_on_both_halves(tmp_path: Path) -> None:
    gains = dict.fromkeys(SETTINGS, 0.0) | {"temperature": 0.02}
    folders = {
        setting: written(tmp_path / setting, records({"safe": gain, "gda": 0.1}))
        for setting, gain in gains.items()
    }
    lines = report(folders)
    row = next(line for line in lines if line.startswith("| `refit` | all |"))
    assert {cell.split()[0] for cell in row.split("|")[3:-1]} == {"+0.0"}
    for half in ("first half", "second half", "all"):
        row = next(line for line in lines if line.startswith(f"| `temperature` | {half} |"))
        assert float(row.split("|")[3].split()[0]) > 1


def test_a_suite_has_to_be_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    assert "suite=NAME" in capsys.readouterr().err
