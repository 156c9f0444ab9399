"""Every bench runs, and ends with the one line that its collector reads."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from bench.__main__ import SCRIPTS, row, run_all
from safe_ray.devices import cpu_capabilities, has_instructions

ROOT = Path(__file__).parents[2]
# They start Ray, or RN50, more than once: too long for a suite even in their tiny form.
LONG = {"extraction", "recompute", "search", "startup"}


@pytest.mark.slow
@pytest.mark.parametrize("script", sorted(set(SCRIPTS) - LONG))
def test_a_bench_runs_in_its_tiny_form_and_ends_with_json(script: str) -> None:
    command = [sys.executable, "-m", f"bench.{script}", "--quick"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["bench"] == script
    if "inapplicable" in result:
        assert not has_instructions("bf16", cpu_capabilities())
        return
    assert result["ratio"] > 0
    holds = result["ratio"] <= result["target"]
    assert result["holds"] is (holds if result["at_most"] else result["ratio"] >= result["target"])


def test_every_bench_is_found() -> None:
    assert {"alpha_row", "growth", "pooling_embedded", "pooling_rn50", "store_read"} <= set(SCRIPTS)
    assert {"pooling_coca", "pooling_last_block", "pooling_map"} <= set(SCRIPTS)
    assert set(SCRIPTS) >= LONG


def prints(*lines: str, status: int = 0) -> list[str]:
    """The command line of a bench that prints so and ends so."""
    code = f"import sys; print({chr(10).join(lines)!r}); sys.exit({status})"
    return [sys.executable, "-c", code]


def a_result(bench: str, **fields: object) -> str:
    fixed = {"ratio": 2.0, "target": 1.0, "at_most": False, "holds": True}
    return json.dumps({"bench": bench, **fixed, **fields})


def test_a_bench_that_fails_is_marked_and_the_others_keep_their_results(
    capfd: pytest.CaptureFixture[str],
) -> None:
    commands = {
        "first": prints("some words", a_result("first")),
        "broken": prints(a_result("broken"), status=3),
        "silent": prints("no result"),
        "foreign": prints(a_result("first")),
        "last": prints(a_result("last", holds=False)),
    }
    kept: list[list[str]] = []
    results = run_all(commands, lambda so_far: kept.append([r["bench"] for r in so_far]))

    names = list(commands)
    assert kept == [names[: count + 1] for count in range(len(names))]
    assert [r["bench"] for r in results if "failed" not in r] == ["first", "last"]
    assert row(results[1]).split() == ["broken", "-", "FAILED:", "exit", "status", "3"]
    assert results[2]["failed"] == results[3]["failed"] == "its last line is no result"
    assert row(results[0]).split() == ["first", "2.00", ">=", "1.0", "holds"]
    assert row(results[4]).split() == ["last", "2.00", ">=", "1.0", "MISSED"]
    shown = capfd.readouterr().out.splitlines()
    begun = [line.partition(", after")[0] for line in shown if ", after " in line]
    assert begun == [f"== {name}: {number} of 5" for number, name in enumerate(names, 1)]
    assert shown[1] == "some words"


def test_a_bench_that_does_not_apply_says_why() -> None:
    result = {"bench": "pooling_bf16", "inapplicable": "this CPU has no such instructions"}
    assert row(result).endswith("does not apply: this CPU has no such instructions")


def test_without_instructions_the_bfloat16_bench_ends_at_once_and_says_so() -> None:
    code = (
        "import runpy, sys, torch; sys.argv = ['bench'];"
        "torch.cpu.get_capabilities = lambda: {'avx2': True};"
        "runpy.run_module('bench.pooling_bf16', run_name='__main__')"
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=100, check=True
    )
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["bench"] == "pooling_bf16"
    assert "no instructions for bfloat16" in result["inapplicable"]
