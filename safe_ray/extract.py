"""`python -m safe_ray.extract`: fill the feature store, and do nothing else."""

from __future__ import annotations

import sys

from safe_ray.cli import Command, main
from safe_ray.config import SweepConfig


def run(config: SweepConfig, flags: frozenset[str]) -> None:
    """Extract what the sweep of the same settings would need."""
    from safe_ray.search.extraction import run_extract

    run_extract(config)


COMMAND = Command(
    verb="extract",
    summary=(
        "Run the images of all tasks through the trunk and keep their dense maps, so that later\n"
        "sweeps find them in the feature store."
    ),
    examples=(
        ("", "what the default sweep needs"),
        ("backbone=rn50 'tasks.datasets=[dtd]' 'tasks.shots=[16]'", "one data set, 16 shots"),
    ),
    run=run,
)

if __name__ == "__main__":
    sys.exit(main(COMMAND))
