"""`python -m safe_ray.tune`: search the learning rate and the blend of every task of a sweep."""

from __future__ import annotations

import sys

from safe_ray.arguments import Option
from safe_ray.cli import RESTART, Command, main, restarts
from safe_ray.config import SweepConfig
from safe_ray.errors import IncompleteError

DRY_RUN = Option("--dry-run", "say what the sweep would run on and need, and do nothing")


def run(config: SweepConfig, flags: frozenset[str]) -> None:
    """Run the sweep, or say what it would need.

    Raises:
        IncompleteError: tasks have no result; those of the others are printed and written.
    """
    if DRY_RUN.name in flags:
        from safe_ray.sweep.overview import dry_run

        dry_run(config)
        return
    anew = restarts(flags, [config])
    from safe_ray.sweep.begin import run_sweep

    missing = run_sweep(config, anew).missing
    if missing:
        from safe_ray.sweep.winners import describe_missing

        raise IncompleteError(
            describe_missing(missing, len(config.tasks.tasks()), len(config.method))
        )


COMMAND = Command(
    verb="tune",
    summary=(
        "Fine-tune CLIP's attention pooling for every task, choose each task's learning rate,\n"
        "weight decay, epochs and blend on validation images, and report on the test split."
    ),
    examples=(
        ("", "every embedded task, in a few minutes on two cores"),
        (
            "backbone=rn50 'tasks.datasets=[eurosat,dtd]' 'tasks.shots=[1,2,4,8,16]' "
            "'tasks.seeds=[1,2,3]' search.candidates=64",
            "thirty tasks on data sets in the folder data.root",
        ),
        ("data=/path/to/folder", "images of your own, a folder a class"),
        (
            "data=list.csv options.path_column=image 'classes={0: cat, 1: dog}'",
            "a table of your own: what its columns and its classes are called",
        ),
        ("data=/path/to/folder --dry-run", "a first look at them: classes, duplicates, disk, time"),
        (
            "'method=[safe,safe_a,tip_adapter_f,zero_shot]'",
            "four methods on the same images, those that train the same sharing it",
        ),
        ("sweep=mine search.bank=16 training.workers=2", "a named sweep, to go on with later"),
        ("search.lr=1e-4 'search.epochs={low: 10, high: 50}'", "fix one knob, search another"),
    ),
    run=run,
    options=(DRY_RUN, *RESTART),
)

if __name__ == "__main__":
    sys.exit(main(COMMAND))
