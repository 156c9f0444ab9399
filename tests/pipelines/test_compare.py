"""All methods on a suite, up to the document; and the rules that choose, on the same banks."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from pipelines.compare import all_methods, document, main, shown_command
from pipelines.selection_study import Chosen, report
from safe_ray.comparison.pairing import pair
from safe_ray.comparison.rows import read_rows
from safe_ray.report.field import Benchmark
from safe_ray.specs import Task
from tests.comparison.results import records, written
from tests.report.results import result


def test_the_document_answers_what_the_methods_that_were_run_can_answer(tmp_path: Path) -> None:
    gains = {"safe": 0.05, "tuned_pooling": 0.03, "zero_shot": 0.0, "gda": 0.01}
    rows = read_rows(written(tmp_path, records(gains)))
    benchmark = Benchmark("embedded", "rn50", (result("birds"), result("cars")))
    text = document(rows, pair(rows), benchmark, "python -m pipelines.compare", 754.0, "results")
    assert "in 12 min 34 s" in text
    assert "Does the blend beat both of its ends?" in text
    # Nothing is said of methods that were not run.
    assert "SAFE-A" not in text.partition("Intervals are of 95%")[0]
    # SAFE gains more than either end, at every number of shots: 2 points a shot over one of them.
    line = next(line for line in text.splitlines() if line.startswith("| tuned_pooling |"))
    cells = [cell.strip() for cell in line.strip("|").split("|")][1:]
    assert [float(cell.split()[0].strip("\\*")) for cell in cells] == pytest.approx(
        [3.0, 2.0, 4.0], abs=0.1
    )
    for heading in ("## Accuracy over shots", "## SAFE minus zero-shot", "## Zero-shot"):
        assert heading in text
    assert "](results_accuracy_over_shots.png)" in text


def test_the_command_is_shown_as_a_shell_takes_it_and_without_places() -> None:
    asked = ["suite=embedded", "method=[safe,gda]", "storage=/somewhere", "sweep=mine"]
    assert shown_command(asked) == (
        "python -m pipelines.compare suite=embedded 'method=[safe,gda]'"
    )


def test_safe_is_the_first_of_all_methods() -> None:
    names = all_methods(None)
    assert names[0] == "safe"
    assert names[1:] == sorted(names[1:])
    assert {"zero_shot", "tip_adapter_f", "linear_probe"} < set(names)


def test_a_suite_has_to_be_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    assert "suite=NAME" in capsys.readouterr().err


def test_each_half_of_the_data_sets_says_for_itself_what_a_rule_gains() -> None:
    """`nll` gains two points on every other data set, and loses one on the rest."""
    names = ("ants", "bees", "cats", "dogs")
    chosen = [
        Chosen(Task(name, 1, seed), rule, 0.5, 0.4 + gain * (rule == "nll"))
        for name, gain in zip(names, (0.02, -0.01, 0.02, -0.01), strict=True)
        for seed in (1, 2)
        for rule in ("metric", "nll", "nll_prior", "metric_nll_prior")
    ]
    lines = report(chosen)
    assert lines[:2] == ["first half: ants, cats", "second half: bees, dogs"]
    halves = [line for line in lines if line.startswith("| `nll` |")][:3]
    means = [float(line.split("|")[3].split()[0]) for line in halves]
    assert means == pytest.approx([2.0, -1.0, 0.5])


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_suite_is_compared_and_its_banks_are_asked_again(
    tmp_path: Path, stored_maps: Path
) -> None:
    def run(module: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        where = ["suite=embedded_small", f"storage={tmp_path}", f"features.store={stored_maps}"]
        where += ["cluster.num_cpus=2"]
        methods = "method=[safe,tuned_pooling,zero_shot]"
        return subprocess.run(
            [sys.executable, "-m", f"pipelines.{module}", *where, methods, *arguments],
            capture_output=True,
            text=True,
            timeout=800,
            check=False,
        )

    out = tmp_path / "docs" / "results.md"
    compared = run("compare", "--out", str(out))
    assert compared.returncode == 0, compared.stderr[-3000:]
    text = out.read_text()
    assert "Does the blend beat both of its ends?" in text
    for name in ("accuracy_over_shots", "critical_difference"):
        assert (out.parent / f"results_{name}.png").read_bytes().startswith(b"\x89PNG")
    assert str(tmp_path) not in text

    studied = run("selection_study")
    assert studied.returncode == 0, studied.stderr[-3000:]
    assert "| `nll_prior` | all |" in studied.stdout
