"""`python -m safe_ray.attempt <command>`: one attempt of a RayJob, which KubeRay may repeat.

A command that is refused (exit status 2) would be refused again, each time after a new cluster has
come up. KubeRay repeats what Ray calls FAILED, whatever the exit status. So the job of a refused
command is stopped from within: Ray then calls it STOPPED, and KubeRay leaves it at that.
"""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from types import FrameType

from safe_ray import job
from safe_ray.arguments import EXIT_INPUT

WAIT = 60.0
"""Seconds after which a job that was asked to stop, and did not, ends as what it is."""


def main(command: Sequence[str]) -> int:
    """Run a command and return its exit status; if that is 2, stop this process's own Ray job."""
    if not command:
        print("usage: python -m safe_ray.attempt <command of a Ray job>", file=sys.stderr)
        return EXIT_INPUT
    # Ray sends SIGTERM to every process of a job, and waits for all of them: the command ends in
    # order, and this one after it. A handler, unlike SIG_IGN, is not handed on to the command.
    signal.signal(signal.SIGTERM, _do_nothing)
    signal.signal(signal.SIGINT, _do_nothing)
    try:
        status = subprocess.run(command, check=False).returncode
    except OSError as error:
        print(f"safe_ray: {command[0]} cannot be run: {error}.", file=sys.stderr)
        status = EXIT_INPUT
    if status != EXIT_INPUT:
        return status if status >= 0 else 128 - status
    name = job.submission_id()
    if name is not None:
        _stop(name)
    return status


def _stop(name: str) -> None:
    """Ask Ray to stop this process's own job, and wait for the signal."""
    print(
        "safe_ray: the command was refused, and would be again: the job ends as STOPPED, so that "
        "it is not tried again.",
        flush=True,
    )
    from ray.job_submission import JobSubmissionClient

    try:
        JobSubmissionClient().stop_job(name)
    except Exception as error:
        # Whatever it was: an attempt more is better than a job that hangs.
        print(f"safe_ray: the job could not be stopped: {error}", file=sys.stderr, flush=True)
        return
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    time.sleep(WAIT)


def _do_nothing(number: int, frame: FrameType | None) -> None:
    pass


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
