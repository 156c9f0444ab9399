"""One attempt of a RayJob: what is refused is stopped, so that KubeRay does not try it again."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from tests.clusters import Head, running_head

ATTEMPT = [sys.executable, "-m", "safe_ray.attempt"]


def run(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*ATTEMPT, *command], capture_output=True, text=True, timeout=60, check=False
    )


@pytest.mark.parametrize("status", [0, 1, 2, 130])
def test_outside_of_a_job_it_ends_as_the_command_does(status: int):
    assert run("sh", "-c", f"exit {status}").returncode == status


def test_a_command_that_was_killed_is_a_failure_and_no_refusal():
    assert run("sh", "-c", "kill -9 $$").returncode == 137


def test_a_command_that_is_not_there_is_refused_in_a_sentence():
    done = run("no-such-command")
    assert done.returncode == 2
    assert "no-such-command cannot be run" in done.stderr
    assert "Traceback" not in done.stderr


def test_on_sigterm_it_waits_for_the_command_to_end_in_order():
    orderly = "import signal, sys, time\n"
    orderly += "signal.signal(signal.SIGTERM, lambda *_: sys.exit(7))\nprint('up', flush=True)\n"
    orderly += "time.sleep(60)"
    process = subprocess.Popen(
        [*ATTEMPT, sys.executable, "-c", orderly],
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "up\n"
    # As Ray does it: to every process of the job.
    os.killpg(process.pid, 15)
    assert process.wait(60) == 7


@pytest.mark.slow
@pytest.mark.timeout(560)
def test_ray_calls_a_refused_command_stopped_and_a_failed_one_failed(tmp_path: Path):
    """KubeRay tries again what is FAILED, and takes STOPPED for the end."""
    with running_head({"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0123456789abcdef" * 4}) as head:
        submit(head, "failing", "exit 1")
        submit(head, "refused", f"python -m safe_ray.tune tasks.shots=[0] storage={tmp_path}")
        assert ending(head, "failing") == "FAILED"
        assert ending(head, "refused") == "STOPPED"
        log = ask(head, "refused/logs")["logs"]
    assert "tasks.shots" in log
    assert "not tried again" in log
    assert "Traceback" not in log


def submit(head: Head, name: str, command: str) -> None:
    words = command if command.startswith("python") else f"sh -c '{command}'"
    entry_point = f"python -m safe_ray.attempt {words}"
    job = json.dumps({"entrypoint": entry_point, "submission_id": name}).encode()
    deadline = time.monotonic() + 150
    while True:
        try:
            ask(head, "", job)
        except AssertionError as error:
            # KubeRay, too, asks again while the node's agent starts.
            if "No available agent" not in str(error) or time.monotonic() > deadline:
                raise
        else:
            return


def ending(head: Head, name: str) -> str:
    deadline = time.monotonic() + 200
    while (status := ask(head, name)["status"]) in ("PENDING", "RUNNING"):
        assert time.monotonic() < deadline, ask(head, f"{name}/logs")
        time.sleep(0.3)
    return status


def ask(head: Head, path: str, sent: bytes | None = None) -> dict[str, str]:
    """Speak with the job API as KubeRay's HTTPMode does."""
    request = urllib.request.Request(
        f"{head.dashboard}/api/jobs/{path}",
        data=sent,
        headers={"Authorization": f"Bearer {head.environment['RAY_AUTH_TOKEN']}"},
    )
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.loads(answer.read())
    except urllib.error.HTTPError as error:
        raise AssertionError(f"{path or 'submission'}: {error.read().decode()[-2000:]}") from None
