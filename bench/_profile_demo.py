"""What each step of the demo costs: `python -m bench._profile_demo [overrides]`.

It runs `python -m safe_ray.tune` in this process with a clock around its steps, in a new folder
unless storage=<folder> is given: twice, so that the second run finds the store filled. The training
and the evaluation are in other processes; a bank is run again here to tell one from the other.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

_START = time.perf_counter()

import torch  # noqa: E402

from safe_ray.compose import load_config  # noqa: E402
from safe_ray.sweep import begin, data, final_test, run, searching  # noqa: E402
from safe_ray.tracking.mlflow import Tracker  # noqa: E402
from safe_ray.tracking.writer import BackgroundTracker  # noqa: E402
from safe_ray.training import job  # noqa: E402
from safe_ray.training.outcome import BankOutcome  # noqa: E402

_STEPS: tuple[tuple[str, Any, str], ...] = (
    ("reading data sets", data, "read_manifests"),
    ("drawing episodes", data, "draw_episodes"),
    ("starting Ray, loading the backbone", begin, "start"),
    ("checking images", begin, "check_images"),
    ("filling the store", run, "extract_support"),
    ("writing tasks and classifiers", run, "write_tasks"),
    ("trials (start-up and training)", searching, "run_trials"),
    ("filling the store for tests", final_test, "extract_tests"),
    ("testing", final_test, "run_tests"),
    ("opening MLflow", Tracker, "open"),
    ("waiting for MLflow", BackgroundTracker, "flush"),
    ("waiting for MLflow", BackgroundTracker, "close"),
    ("in the tracker's thread", BackgroundTracker, "_write"),
)


class Clock:
    """Adds up the seconds that each step took."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)

    def around(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return the function with a clock around it."""

        def timed(*arguments: Any, **named: Any) -> Any:
            start = time.perf_counter()
            try:
                return function(*arguments, **named)
            finally:
                self.seconds[name] += time.perf_counter() - start

        return timed


@contextmanager
def clocked(steps: tuple[tuple[str, Any, str], ...]) -> Iterator[Clock]:
    """Put a clock around the steps for as long as the block lasts."""
    clock = Clock()
    before = [(owner, attribute, getattr(owner, attribute)) for _, owner, attribute in steps]
    for name, owner, attribute in steps:
        setattr(owner, attribute, clock.around(name, getattr(owner, attribute)))
    try:
        yield clock
    finally:
        for owner, attribute, function in before:
            setattr(owner, attribute, function)


def main() -> None:
    """Run the demo twice, and print the tables."""
    imports = time.perf_counter() - _START
    with tempfile.TemporaryDirectory() as folder:
        overrides = [f"storage={Path(folder).resolve()}", *sys.argv[1:]]
        for store in ("empty", "filled"):
            config = load_config([*overrides, f"sweep=with-{store}-store"])
            with clocked(_STEPS) as clock:
                start = time.perf_counter()
                begin.run_sweep(config)
                total = time.perf_counter() - start
            aside = clock.seconds.pop("in the tracker's thread")
            print(f"\n{store} store: {total:.1f} s, after {imports:.1f} s of imports")
            for name, seconds in clock.seconds.items():
                print(f"  {name:<34}{seconds:7.1f} s")
            print(f"  {'all else':<34}{total - sum(clock.seconds.values()):7.1f} s")
            print(f"  beside them, in the tracker's thread: {aside:.1f} s")
            outcomes = [
                outcome
                for file in sorted((config.outputs / "banks").glob("*/*/*/outcome.json"))
                if (outcome := BankOutcome.load(file.parent)) is not None
            ]
            banks = sum(outcome.seconds for outcome in outcomes)
            print(f"  in the trials' processes: {len(outcomes)} banks, {banks:.1f} s together")
        first = outcomes[0]
        torch.set_num_threads(1)
        candidates = tuple(c.values for c in first.candidates)
        again = job.BankJob(str(config.outputs), first.task_id, first.group, 99, candidates)
        parts = (
            ("training", job, "train_bank"),
            ("fitting and judging", job, "judge_candidates"),
            ("saving heads", job, "save_head"),
        )
        with clocked(parts) as clock:
            job.run_bank(again, torch.device("cpu"))
        shares = ", ".join(f"{name} {1e3 * s:.0f} ms" for name, s in clock.seconds.items())
        print(f"one bank of {first.task_id} again, {len(candidates)} candidates: {shares}")


if __name__ == "__main__":
    main()
