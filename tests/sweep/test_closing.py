"""The closing lines work when they are pasted into a shell, and show no password."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import optuna
import pytest
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend

from safe_ray.job import VARIABLE
from safe_ray.report.summary import TaskResult
from safe_ray.search.journal import FILE_NAME
from safe_ray.sweep.closing import (
    closing_lines,
    compare_command,
    pages_of,
    predict_command,
    program,
)
from tests.report.results import result

NAME = "safe_ray-tiny-foods-2shot"
BIN = Path(sys.executable).parent
ELSEWHERE = os.pathsep.join(
    folder for folder in os.environ["PATH"].split(os.pathsep) if Path(folder) != BIN
)


def said(lines: list[str], name: str) -> str:
    (line,) = (line for line in lines if line.split()[:1] == [name])
    return line.strip().removeprefix(name).strip()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def answer(command: str, folder: Path, seconds: float = 200) -> int:
    """Paste a command that serves pages into a shell, and return the status of its first page."""
    port = free_port()
    shell = subprocess.Popen(
        f"exec {command} --port {port}" + (" --workers 1" if "mlflow ui" in command else ""),
        shell=True,
        cwd=folder,
        env={**os.environ, "PATH": ELSEWHERE},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if shell.poll() is not None:
                raise AssertionError(shell.communicate()[1])
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=5) as page:
                    return int(page.status)
            except (urllib.error.URLError, OSError):
                time.sleep(0.3)
        raise AssertionError(f"{command} serves nothing")
    finally:
        os.killpg(shell.pid, signal.SIGTERM)
        try:
            shell.communicate(timeout=20)
        except subprocess.TimeoutExpired:
            os.killpg(shell.pid, signal.SIGKILL)
            shell.communicate()


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    """A sweep's folder, with a blank in its name, that holds a study."""
    folder = tmp_path / "my results" / "outputs" / "first"
    folder.mkdir(parents=True)
    storage = JournalStorage(JournalFileBackend(str(folder / FILE_NAME)))
    optuna.create_study(storage=storage, study_name="shapes").optimize(lambda trial: 1.0, 1)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("name", ["compare", "studies"])
def test_a_pasted_line_opens_what_it_promises(
    name: str, sweep: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("PATH", ELSEWHERE)
    monkeypatch.chdir(tmp_path)
    lines = closing_lines(sweep, tmp_path, f"sqlite:///{sweep.parent.parent}/mlflow.db")
    assert answer(said(lines, name), tmp_path) == 200


def test_a_program_outside_of_the_path_is_named_by_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert program("mlflow") == str(BIN / "mlflow")
    monkeypatch.chdir(BIN.parent.parent)
    assert program("mlflow") == f"{BIN.parent.name}/{BIN.name}/mlflow"


def test_a_program_on_the_path_is_named_by_its_name(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PATH", str(BIN), prepend=os.pathsep)
    assert program("mlflow") == "mlflow"


def test_another_environments_program_of_the_same_name_is_not_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    other = tmp_path / "mlflow"
    other.write_text("#!/bin/sh\n")
    other.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert program("mlflow") == str(BIN / "mlflow")


def test_what_is_not_installed_is_not_named():
    assert program("no-such-program") is None


def test_in_a_job_nothing_depends_on_its_shell(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PATH", str(BIN), prepend=os.pathsep)
    monkeypatch.chdir(BIN.parent.parent)
    monkeypatch.setenv(VARIABLE, "{}")
    assert program("mlflow") == str(BIN / "mlflow")


def test_a_server_is_its_own_address():
    assert compare_command("http://tracker:5000") == "http://tracker:5000"
    assert compare_command("https://me:secret@tracker/x") == "https://me:***@tracker/x"
    assert compare_command("databricks://profile") == "databricks://profile"


def test_a_databases_password_is_left_to_the_person(tmp_path: Path):
    lines = closing_lines(tmp_path, tmp_path, "postgresql://me:secret@host/db")
    assert "secret" not in "".join(lines)
    assert said(lines, "compare").endswith(" --backend-store-uri 'postgresql://me:***@host/db'")
    assert "with the password in place of ***" in "\n".join(lines)


def test_the_last_lines_are_the_report_and_a_command_that_predicts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    page, head = tmp_path / "a b" / "report.html", tmp_path / "a b" / "task"
    for path, python in ((str(BIN), "python"), (ELSEWHERE, str(BIN / "python"))):
        monkeypatch.setenv("PATH", path)
        command = predict_command(head, str(tmp_path / "a b" / "example.png"))
        assert command == f"{python} -m safe_ray.predict 'a b/task' 'a b/example.png'"
        lines = closing_lines(tmp_path, tmp_path, "http://tracker", page=page, predict=command)
        assert lines[-2:] == [f"  report    {page}", f"  predict   {command}"]
    assert predict_command(head, "s3://photos/a b.png").endswith(
        " 'a b/task' 's3://photos/a b.png'"
    )


def recorded(*, seeds: Sequence[int] = (1,), **changes: object) -> list[TaskResult]:
    return [
        replace(result(seed=seed), mlflow_run_id=f"run{seed}", head="head", **changes)
        for seed in seeds
    ]


def test_pages_of_a_server_show_the_sweep_its_run_and_its_model_without_a_password():
    uri = "https://me:secret@tracker/mlflow/?token=hidden"
    pages = dict(pages_of(uri, "7", "my sweep", recorded(), registered=True))
    assert pages == {
        "runs": "https://tracker/mlflow/#/experiments/7/runs?searchFilter="
        "tags.sweep%20%3D%20%22my%20sweep%22&workflowType=machine_learning",
        "run": "https://tracker/mlflow/#/experiments/7/runs/run1?workflowType=machine_learning",
        "models": f"https://tracker/mlflow/#/models/{NAME}?workflowType=machine_learning",
    }


def test_pages_of_a_database_are_those_that_its_command_opens():
    pages = dict(pages_of("sqlite:////db", "7", "x", recorded(seeds=(1, 2)), registered=True))
    assert pages["models"] == f"http://127.0.0.1:5000/#/models/{NAME}?workflowType=machine_learning"
    assert "run" not in pages


def test_there_are_no_pages_of_what_mlflow_has_not_heard():
    assert pages_of("sqlite:////db", "", "x", recorded(), registered=True) == []
    unheard = [replace(each, mlflow_run_id=None) for each in recorded()]
    assert dict(pages_of("sqlite:////db", "7", "x", unheard, registered=True)).keys() == {"runs"}
    assert "models" not in dict(pages_of("sqlite:////db", "7", "x", recorded(), registered=False))


def test_in_a_job_the_node_is_named(tmp_path: Path):
    lines = closing_lines(tmp_path, tmp_path, "sqlite:////db", node="head-1")
    assert said(lines, "node").startswith("head-1")
