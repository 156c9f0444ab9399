"""`safe-ray <verb>`: the same commands as `python -m safe_ray.<verb>`."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from safe_ray import arguments
from safe_ray.__main__ import VERBS, main, there, usage

ROOT = Path(__file__).parents[1]


def run(*given: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "safe_ray", *given],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_the_script_that_is_installed_calls_what_the_module_calls() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    module, _, name = project["scripts"]["safe-ray"].partition(":")
    assert getattr(importlib.import_module(module), name) is main


def test_help_lists_the_verbs_that_are_there_and_no_others() -> None:
    done = run("--help")
    assert done.returncode == 0
    assert done.stdout.strip() == usage(there()).strip()
    listed = {line.split()[0] for line in done.stdout.splitlines() if line.startswith("  ")}
    assert listed == set(there())
    assert {"tune", "extract", "datasets", "predict", "report", "track"} <= listed <= set(VERBS)
    for verb in VERBS.keys() - listed:
        assert run(verb).returncode == 2


def test_without_a_verb_it_says_which_there_are(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    assert "usage: safe-ray <command>" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("verb", "said"),
    [
        ("tun", "There is no command 'tun'. Did you mean 'tune'?"),
        ("../etc", "There is no command '../etc'. The commands are tune, extract, "),
        ("cli", "There is no command 'cli'."),
    ],
)
def test_a_wrong_verb_is_one_sentence(
    verb: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([verb]) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.startswith(f"safe_ray: {said}")
    assert len(shown.err.splitlines()) == 1


def test_a_verb_is_given_the_rest_and_its_status_is_that_of_the_script(tmp_path: Path) -> None:
    done = run("predict", "no-such-head", "x.png", cwd=tmp_path)
    assert done.returncode == 2
    assert "There is no head in" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_texts_name_the_command_as_it_was_called(monkeypatch: pytest.MonkeyPatch) -> None:
    text = "usage: python -m safe_ray.predict HEAD, and python -m safe_ray.tune; safe_ray.errors"
    assert arguments.spelled(text) == text
    monkeypatch.setattr(arguments._Called, "by_script", True)
    assert (
        arguments.spelled(text)
        == "usage: safe-ray predict HEAD, and safe-ray tune; safe_ray.errors"
    )


@pytest.mark.parametrize("verb", ["predict", "report", "export", "serve"])
def test_a_verbs_own_help_names_the_script(verb: str) -> None:
    done = run(verb, "--help")
    assert done.returncode == 0, done.stderr
    assert f"usage: safe-ray {verb}" in done.stdout
    assert "python -m" not in done.stdout


def test_the_version_needs_no_verb(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"{arguments.version()}\n"
