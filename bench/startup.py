"""The first bank trains its first epoch within 1.3 times the bare start of what it needs.

The bare start is a script that does nothing else: it imports torch, open_clip, Optuna, MLflow and
Ray Tune, starts Ray, and lets one worker process import torch, one after the other. The sweep, for
which the store is filled, also checks its images, opens MLflow's database, writes its tasks and
trains an epoch. `--help` is held against a script that imports Hydra, OmegaConf and pydantic, which
the configuration is made of. All are timed in turns; the ratio is the worse of both over its bound.
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

HELP_BOUND, TRIAL_BOUND = 2.0, 1.3
BARE_HELP = """
import hydra
from omegaconf import OmegaConf
from pydantic import BaseModel
class Model(BaseModel):
    number: int
"""
BARE_START = """
import torch, open_clip, optuna, ray
from mlflow import MlflowClient
from ray import tune
ray.init("local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
ray.get(ray.remote(lambda: __import__("torch").__version__).remote())
print("up", flush=True)
"""
_TASK = ("tasks.datasets=[pictogram_foods]", "tasks.shots=[2]", "tasks.seeds=[1]")
_LIMIT = 300.0


def command(verb: str, *arguments: str) -> list[str]:
    """Return the command line of a verb."""
    return [sys.executable, "-m", f"safe_ray.{verb}", *arguments]


def seconds_to_end(command: list[str]) -> float:
    """Time a command from its start to its end."""
    start = time.perf_counter()
    subprocess.run(command, stdout=subprocess.DEVNULL, check=True)
    return time.perf_counter() - start


def bare_start_seconds() -> float:
    """Time the bare start until its worker has answered; its end does not count."""
    start = time.perf_counter()
    with subprocess.Popen(
        [sys.executable, "-c", BARE_START],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as process:
        assert process.stdout is not None
        if process.stdout.readline() != "up\n":
            raise SystemExit("Ray did not start")
        return time.perf_counter() - start


def first_trial_seconds(settings: list[str], outputs: Path, sweep: str) -> dict[str, float]:
    """Time a sweep until each of its first signs, and end it.

    A bank leaves its first checkpoint after its first epoch here, which is a little later than
    when its training begins.
    """
    signs = {
        "begun": "config.json",
        "tasks written": "tasks/*/task.json",
        "first bank handed out": "banks/*/*/*/job.json",
        "first epoch trained": "banks/*/*/*/checkpoint.safetensors",
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
    repeats = 1 if quick else 5
    shown = subprocess.run(command("tune", "--help"), capture_output=True, text=True, check=True)
    if "search.candidates" not in shown.stdout:
        raise SystemExit("--help does not list the settings")
    helps = {
        "--help": command("tune", "--help"),
        "bare": [sys.executable, "-c", BARE_HELP],
    }
    times: dict[str, list[float]] = {name: [] for name in helps}
    for _ in range(repeats):
        for name, arguments_of in helps.items():
            times[name].append(seconds_to_end(arguments_of))
    help_seconds, bare_help = (statistics.median(found) for found in times.values())
    print(f"--help: {help_seconds:.2f} s, where what it imports takes {bare_help:.2f} s")
    with tempfile.TemporaryDirectory() as folder:
        storage = Path(folder).resolve()
        # One process is enough to fill the store, and none of it is timed.
        settings = [*_TASK, f"storage={storage}", "cluster.num_cpus=2", "features.views=2"]
        subprocess.run(
            command("extract", *settings), stdout=subprocess.DEVNULL, stderr=2, check=True
        )
        runs, bare = [], []
        for turn in range(1 if quick else 3):
            bare.append(bare_start_seconds())
            sweep = [*settings, "search.epochs=50"]
            runs.append(first_trial_seconds(sweep, storage / "outputs", f"sweep-{turn}"))
    first = {name: statistics.median(run[name] for run in runs) for name in runs[0]}
    print("filled store: " + ", ".join(f"{name} {at:.1f} s" for name, at in first.items()))
    trial, start = first["first epoch trained"], statistics.median(bare)
    print(f"bare start: {start:.1f} s; the first epoch takes {trial / start:.2f} times as long")
    help_ratio, trial_ratio = help_seconds / bare_help, trial / start
    finish(
        "startup",
        max(help_ratio / HELP_BOUND, trial_ratio / TRIAL_BOUND),
        1.0,
        at_most=True,
        help_ratio=round(help_ratio, 2),
        first_epoch_ratio=round(trial_ratio, 2),
        help_seconds=round(help_seconds, 2),
        first_epoch_seconds=round(trial, 1),
        bare_start_seconds=round(start, 1),
    )


if __name__ == "__main__":
    main()
