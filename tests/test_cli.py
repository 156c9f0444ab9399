"""The commands as a person meets them: help, mistakes, interruptions. Each runs as a process."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import yaml

import safe_ray
from safe_ray.compose import packaged_tree
from safe_ray.config import groups, knobs
from safe_ray.features.parts import write_part

HEAVY = ("torch", "ray", "mlflow", "optuna", "open_clip", "pyarrow", "numpy")
ROOT = Path(safe_ray.__file__).resolve().parent.parent


def run(
    *arguments: str, verb: str = "tune", **environment: str
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", f"safe_ray.{verb}", *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        cwd=ROOT,
        env={**os.environ, **environment},
    )


def check_refused(result: subprocess.CompletedProcess[str], *words: str) -> None:
    """A mistake is one line on standard error, and exit status 2."""
    assert result.returncode == 2, result.stderr
    assert result.stdout == ""
    assert len(result.stderr.strip().splitlines()) == 1
    for word in words:
        assert word in result.stderr


@pytest.fixture(scope="module")
def help_text() -> str:
    result = run("--help")
    assert result.returncode == 0
    return result.stdout


def test_help_lists_every_group_with_its_choices(help_text: str):
    for group in groups():
        line = next(line for line in help_text.splitlines() if line.startswith(f"  {group} "))
        for file in (packaged_tree() / group).glob("*.yaml"):
            assert file.stem in line


def test_help_lists_every_knob_with_default_meaning_and_type(help_text: str):
    for knob in knobs():
        assert f"  {knob.path}=" in help_text
        assert f"{knob.meaning} ({knob.type})" in help_text
    assert "training.workers=1\n" in help_text


def test_help_shows_a_tree_of_ones_own(tiny_config_dir: Path):
    said = run("--config-dir", str(tiny_config_dir), "--help").stdout
    assert "tiny" in said
    assert "shapes" in said


@pytest.mark.parametrize("verb", ["tune", "extract"])
def test_help_and_mistakes_answer_without_loading_anything_heavy(verb: str):
    code = (
        "import sys, runpy\n"
        f"from safe_ray.{verb} import COMMAND\n"
        "from safe_ray.cli import main\n"
        "assert main(COMMAND, ['--help']) == 0\n"
        "assert main(COMMAND, ['backbone=rn5']) == 2\n"
        f"loaded = [name for name in {HEAVY!r} if name in sys.modules]\n"
        "assert not loaded, loaded\n"
    )
    began = time.monotonic()
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=60
    )
    assert result.returncode == 0, result.stderr
    assert time.monotonic() - began < 10


def test_version():
    assert run("--version").stdout == f"safe_ray {safe_ray.__version__}\n"


def test_show_config_prints_the_configuration_as_yaml(tiny_config_dir: Path, tmp_path: Path):
    result = run(
        f"--config-dir={tiny_config_dir}",
        "backbone=tiny",
        "tasks.datasets=[shapes]",
        "sweep=mine",
        "--show-config",
        SAFE_RAY_STORAGE=str(tmp_path),
    )
    shown = yaml.safe_load(result.stdout)
    assert shown["sweep"] == "mine"
    assert shown["storage"] == str(tmp_path)
    assert shown["datasets"]["shapes"]["format"] == "parquet"
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["backbone=rn5"], ["backbone=rn5", "'rn50'"]),
        (["tasks.datasets=[eurosta]"], ["'eurosta'", "'eurosat'"]),
        (["tasks.shots=[0]", "tasks.datasets=[eurosat]"], ["tasks.shots"]),
        (["--worker", "2"], ["--worker", "--help"]),
        (["--config-dir"], ["--config-dir"]),
        (["--config-dir", "/nowhere"], ["/nowhere"]),
    ],
)
def test_a_mistake_is_one_sentence_and_exit_status_2(arguments: list[str], words: list[str]):
    check_refused(run(*arguments), *words)


def interrupted(number: signal.Signals) -> subprocess.CompletedProcess[str]:
    """Start a command that works for ever, and send it a signal."""
    code = (
        "import signal, sys, time\n"
        # A shell without job control starts what it puts in the background with SIGINT ignored.
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "from safe_ray.cli import Command, main\n"
        "def run(config, flags):\n"
        "    print('working', flush=True)\n"
        "    time.sleep(60)\n"
        "arguments = ['sweep=mine', 'backbone=rn50', 'tasks.datasets=[eurosat]']\n"
        "sys.exit(main(Command('tune', '', (), run), arguments))\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "working\n"
    process.send_signal(number)
    out, err = process.communicate(timeout=30)
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interruption_says_how_to_go_on(number: signal.Signals):
    result = interrupted(number)
    assert result.returncode == 130
    assert "sweep=mine" in result.stderr
    assert "Traceback" not in result.stderr


def test_what_sigterm_leaves_to_say_is_said_before_anything_is_tidied_up():
    """`ray job stop` sends SIGKILL three seconds later."""
    code = (
        "import sys, time\n"
        "from safe_ray.cli import Command, main\n"
        "def run(config, flags):\n"
        "    try:\n"
        "        print('working', flush=True)\n"
        "        time.sleep(60)\n"
        "    finally:\n"
        "        time.sleep(60)\n"
        "arguments = ['sweep=mine', 'backbone=rn50', 'tasks.datasets=[eurosat]']\n"
        "sys.exit(main(Command('tune', '', (), run), arguments))\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "working\n"
    process.send_signal(signal.SIGTERM)
    time.sleep(1)
    process.kill()
    _, told = process.communicate(timeout=30)
    assert told.count("sweep=mine") == 1


def test_results_that_are_missing_are_one_line_and_exit_status_1():
    code = (
        "import sys\n"
        "from safe_ray.cli import Command, main\n"
        "from safe_ray.errors import IncompleteError\n"
        "def run(config, flags):\n"
        "    raise IncompleteError('1 of 2 tasks without a result')\n"
        "arguments = ['backbone=rn50', 'tasks.datasets=[eurosat]']\n"
        "sys.exit(main(Command('tune', '', (), run), arguments))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=60
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "safe_ray: 1 of 2 tasks without a result\n"


def test_a_job_is_warned_when_its_results_would_go_with_it(tmp_path: Path):
    code = (
        "import sys\n"
        "from safe_ray.cli import Command, main\n"
        "arguments = ['backbone=rn50', 'tasks.datasets=[eurosat]', *sys.argv[1:]]\n"
        "sys.exit(main(Command('tune', '', (), lambda config, flags: None), arguments))\n"
    )

    def submitted(*arguments: str) -> str:
        return subprocess.run(
            [sys.executable, "-c", code, *arguments],
            capture_output=True,
            text=True,
            timeout=60,
            cwd=ROOT,
            env={**os.environ, "RAY_JOB_CONFIG_JSON_ENV_VAR": json.dumps({"runtime_env": sent})},
        ).stderr

    sent: dict[str, str] = {"working_dir": "gcs://_ray_pkg_0123456789abcdef.zip"}
    assert "storage=<folder>" in submitted("storage=.")
    assert submitted(f"storage={tmp_path}") == ""
    assert submitted() == ""
    sent = {}
    assert submitted("storage=.") == ""


def test_a_damaged_store_is_told_by_the_exit_status_of_its_verification(tmp_path: Path):
    def verify() -> subprocess.CompletedProcess[str]:
        return run("--verify", f"storage={tmp_path}", verb="extract")

    empty = verify()
    assert (empty.returncode, empty.stderr) == (0, "")
    assert empty.stdout == f"{tmp_path / 'features'} holds no dense maps.\n"

    maps = np.ones((2, 3, 4), np.float16)
    part = write_part(tmp_path / "features" / "store", ["a", "b"], [0, 0], maps)
    sound = verify()
    assert (sound.returncode, sound.stderr) == (0, "")
    assert "store: 1 part (2 dense maps) sound, 0 parts unverified, 0 parts damaged" in sound.stdout

    content = part.read_bytes()
    part.write_bytes(content.replace(maps[0].tobytes(), b"\1" * maps[0].nbytes, 1))
    damaged = verify()
    assert damaged.returncode == 1
    assert f"{part} with 2 dense maps is damaged (1 of the 2 maps" in damaged.stdout
    assert "The next run extracts what it needs of the damaged parts again." in damaged.stdout
    assert not part.exists()
    assert verify().returncode == 0
