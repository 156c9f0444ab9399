"""A small sweep as a process of its own: its command, its end, and what it has left."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from tests.mlflow_servers import migrated_database

SETTINGS = (
    "backbone=tiny",
    "tasks.datasets=[shapes]",
    "tasks.shots=[2]",
    "tasks.seeds=[1,2]",
    "features.views=2",
    "search.candidates=6",
    "search.bank=2",
    "search.epochs={low: 4, high: 12}",
    "training.batch_size=8",
    "evaluation.targets=[some_shapes]",
)


def command(config_dir: Path, weights: Path, storage: Path, *overrides: str) -> list[str]:
    """Return the words of a sweep's command, in whose storage there is a database for MLflow."""
    storage.mkdir(parents=True, exist_ok=True)
    if not (database := storage / "mlflow.db").exists():
        shutil.copyfile(migrated_database(weights.parent), database)
    return [
        sys.executable,
        "-m",
        "safe_ray.tune",
        "--config-dir",
        str(config_dir),
        *SETTINGS,
        f"backbone.pretrained={weights}",
        f"storage={storage}",
        # The maps are the same in all of these sweeps; what extracts them has tests of its own.
        f"features.store={weights.parent / 'features'}",
        "sweep=trial",
        "cluster.num_cpus=2",
        *overrides,
    ]


def run(arguments: list[str], timeout: float = 280) -> subprocess.CompletedProcess[str]:
    return subprocess.run(arguments, capture_output=True, text=True, timeout=timeout, check=False)


def summary_of(storage: Path) -> list[dict[str, Any]]:
    entries: list[dict[str, Any]] = json.loads(
        (storage / "outputs" / "trial" / "summary.json").read_text()
    )
    return entries


def start(arguments: list[str], storage: Path, until: int) -> subprocess.Popen[str]:
    """Start a sweep, and return when it has finished `until` banks."""
    driver = subprocess.Popen(
        arguments,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    deadline = time.monotonic() + 240
    while len(finished_banks(storage)) < until:
        assert driver.poll() is None, "the sweep ended before it could be stopped"
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return driver


def finished_banks(storage: Path) -> dict[Path, int]:
    outcomes = (storage / "outputs" / "trial" / "banks").glob("*/*/*/outcome.json")
    return {file: file.stat().st_mtime_ns for file in outcomes}
