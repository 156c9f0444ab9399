"""`--help` answers within 1.5 s, and the first bank trains within 20 s of the command.

The second is for a store that has the task's maps: imports, the check of the images, Ray's start,
the tracker and a worker's own imports. The ratio is the worse of the two times over its bound.
"""

from __future__ import annotations

import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from bench.harness import arguments, finish
from bench.sweeps import two_cores

HELP_BOUND, TRIAL_BOUND = 1.5, 20.0
_TASK = ("tasks.datasets=[pictogram_foods]", "tasks.shots=[2]", "tasks.seeds=[1]")
_LIMIT = 300.0


def command(verb: str, *arguments: str) -> list[str]:
    """Return the command line of a verb."""
    return [sys.executable, "-m", f"safe_ray.{verb}", *arguments]


def help_seconds() -> float:
    """Time `--help`."""
    start = time.perf_counter()
    subprocess.run(command("tune", "--help"), stdout=subprocess.DEVNULL, check=True)
    return time.perf_counter() - start


def first_trial_seconds(settings: list[str], outputs: Path, sweep: str) -> dict[str, float]:
    """Time a sweep until each of its first signs, and end it.

    A bank leaves its first checkpoint after its first epoch here, which is a little later than
    when its training begins.
    """
    signs = {
        "begun": "config.json",
        "tasks written": "tasks/*/task.json",
        "first bank handed out": "banks/*/*/job.json",
        "first epoch trained": "banks/*/*/checkpoint.safetensors",
    }
    seen: dict[str, float] = {}
    start = time.perf_counter()
    driver = subprocess.Popen(
        command("tune", *settings, f"sweep={sweep}", "training.checkpoint_seconds=0"),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        while len(seen) < len(signs):
            for name, pattern in signs.items():
                if name not in seen and any((outputs / sweep).glob(pattern)):
                    seen[name] = time.perf_counter() - start
            if driver.poll() is not None or time.perf_counter() - start > _LIMIT:
                raise SystemExit("the sweep ended before its first trial was seen")
            time.sleep(0.01)
    finally:
        # Ray's own processes are in the driver's session and end with it.
        driver.send_signal(signal.SIGINT)
        driver.wait(timeout=120)
    return seen


def main() -> None:
    """Time both, with both cores."""
    quick = arguments(str(__doc__)).quick
    two_cores()
    repeats = 1 if quick else 3
    shown = subprocess.run(command("tune", "--help"), capture_output=True, text=True, check=True)
    if "search.candidates" not in shown.stdout:
        raise SystemExit("--help does not list the settings")
    bare = statistics.median(_python_seconds() for _ in range(repeats))
    helps = statistics.median(help_seconds() for _ in range(repeats))
    print(f"--help: {helps:.2f} s, of which a bare Python takes {bare:.2f} s")
    with tempfile.TemporaryDirectory() as folder:
        storage = Path(folder).resolve()
        # One process is enough to fill the store, and none of it is timed.
        settings = [*_TASK, f"storage={storage}", "cluster.num_cpus=2", "features.views=2"]
        subprocess.run(
            command("extract", *settings), stdout=subprocess.DEVNULL, stderr=2, check=True
        )
        runs = [
            first_trial_seconds(
                [*settings, "search.epochs=50"], storage / "outputs", f"sweep-{turn}"
            )
            for turn in range(1 if quick else 2)
        ]
    first = {name: statistics.median(run[name] for run in runs) for name in runs[0]}
    print("warm store: " + ", ".join(f"{name} {seconds:.1f} s" for name, seconds in first.items()))
    trial = first["first epoch trained"]
    finish(
        "startup",
        max(helps / HELP_BOUND, trial / TRIAL_BOUND),
        1.0,
        at_most=True,
        help_seconds=round(helps, 2),
        first_trial_seconds=round(trial, 1),
    )


def _python_seconds() -> float:
    start = time.perf_counter()
    subprocess.run([sys.executable, "-c", "pass"], check=True)
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
