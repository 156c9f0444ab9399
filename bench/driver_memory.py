"""A bank costs a sweep's driver at most 64 KiB of memory, Ray Tune's record of it included.

Two searches of made-up tasks go through Ray Tune in this process, the second with many more tasks,
and each trial leaves a made-up outcome instead of training. A bank's cost is what the process's
resident memory grew by in the second search, over its banks. What the package itself keeps of a
task is what `bench.growth` states; the rest is Tune's. MLflow is not part of it.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import ray

from bench.growth import kilobytes, made_up_search
from bench.harness import CORES, arguments, finish
from bench.sweeps import two_cores
from safe_ray.cluster import TrialPlan, connect, plan_trials
from safe_ray.search.tuning import run_trials
from safe_ray.training.job import BankJob

_TARGET_KIB = 64.0
_CANDIDATES, _BANK = 4, 2


def leave_outcome(config: dict[str, Any], settings: dict[str, Any]) -> None:
    """Do what a trial does, without the training."""
    import numpy as np
    from ray import tune

    from bench.growth import made_up_outcome

    job = BankJob.from_json(config["job"])
    made_up_outcome(job, np.random.default_rng(job.bank)).save(job.folder)
    tune.report({"finished": 1})


def search(tasks: int, plan: TrialPlan) -> float:
    """Search so many tasks, and return the KiB by which this process has grown since it began."""
    with tempfile.TemporaryDirectory() as folder:
        sweep = Path(folder).resolve()
        searcher = made_up_search(sweep, tasks, _CANDIDATES, _BANK)
        before = kilobytes("VmRSS")
        run_trials(searcher, plan, 1, sweep, leave_outcome)
        if not searcher.complete:
            raise SystemExit("the search did not end")
        return kilobytes("VmRSS") - before


def main() -> None:
    """Run both searches."""
    quick = arguments(str(__doc__)).quick
    two_cores()
    plan = plan_trials(connect(None, CORES), 1, "auto", "auto", "auto")
    few, many = (1, 2) if quick else (40, 240)
    # What the first trials load stays loaded.
    search(few, plan)
    grown = search(many, plan)
    ray.shutdown()
    banks = many * _CANDIDATES // _BANK
    print(f"{banks} banks of {many} tasks: {grown / 1024:.0f} MiB, {grown / banks:.0f} KiB a bank")
    finish("driver_memory", max(grown, 1.0) / banks, _TARGET_KIB, at_most=True, banks=banks)


if __name__ == "__main__":
    main()
