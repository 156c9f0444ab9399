"""Every bench runs, and ends with the one line that its collector reads."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from bench.__main__ import SCRIPTS

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
    assert result["ratio"] > 0
    holds = result["ratio"] <= result["target"]
    assert result["holds"] is (holds if result["at_most"] else result["ratio"] >= result["target"])


def test_every_bench_is_found() -> None:
    assert {"alpha_row", "growth", "pooling_embedded", "pooling_rn50", "store_read"} <= set(SCRIPTS)
    assert set(SCRIPTS) >= LONG
