"""What a sweep ran on: versions, the machine, the commit of the package."""

from __future__ import annotations

import os
import platform
import subprocess
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

PACKAGES = (
    "safe-ray",
    "torch",
    "torchvision",
    "open_clip_torch",
    "ray",
    "optuna",
    "mlflow",
    "numpy",
    "pyarrow",
)


def system_facts(devices: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return the facts for `Tracker.log_system`.

    Args:
        devices: what the caller knows of the cluster, such as `{"cluster.GPU": "4"}`.
    """
    facts = {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "machine": platform.machine(),
        "driver_cpus": str(os.cpu_count()),
    }
    for package in PACKAGES:
        try:
            facts[package] = version(package)
        except PackageNotFoundError:
            continue
    commit = git_commit(Path(__file__))
    if commit:
        facts["git_commit"] = commit
    return {**facts, **(devices or {})}


def git_commit(file: Path) -> str | None:
    """Return the commit that `file` is tracked in, with `+changes` if the checkout has some.

    None for an installed package, also where its environment lies inside somebody's repository.
    """

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", "-C", str(file.parent), *arguments],
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        ).stdout.strip()

    try:
        git("ls-files", "--error-unmatch", file.name)
        changed = git("status", "--porcelain", "--untracked-files=no")
        return git("rev-parse", "HEAD") + ("+changes" if changed else "")
    except (OSError, subprocess.SubprocessError):
        return None
