from __future__ import annotations

import re
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

from safe_ray.tracking.system import git_commit, system_facts


def test_the_facts_name_what_the_sweep_ran_on() -> None:
    facts = system_facts({"cluster.CPU": "2"})
    assert facts["cluster.CPU"] == "2"
    assert facts["python"] == ".".join(map(str, sys.version_info[:3]))
    for package in ("torch", "ray", "optuna", "mlflow", "open_clip_torch"):
        assert facts[package] == version(package)


def test_the_commit_is_that_of_a_tracked_file_only(tmp_path: Path) -> None:
    def git(*arguments: str) -> None:
        identity = ["-c", "user.name=a", "-c", "user.email=a@b.c"]
        subprocess.run(["git", "-C", str(tmp_path), *identity, *arguments], check=True, timeout=30)

    file, other = tmp_path / "tracked.py", tmp_path / "untracked.py"
    file.write_text("1")
    other.write_text("1")
    assert git_commit(file) is None
    git("init", "-q")
    git("add", "tracked.py")
    git("commit", "-q", "-m", "one")
    assert re.fullmatch("[0-9a-f]{40}", git_commit(file) or "")
    assert git_commit(other) is None
    file.write_text("2")
    assert (git_commit(file) or "").endswith("+changes")
