"""`python -m safe_ray.extract`: fill the feature store, or verify it, and do nothing else."""

from __future__ import annotations

import sys

from safe_ray.arguments import Option
from safe_ray.cli import Command, main
from safe_ray.config import SweepConfig

VERIFY = Option("--verify", "read all that the feature stores hold, and set aside what is damaged")
EXIT_DAMAGED = 1


def run(config: SweepConfig, flags: frozenset[str]) -> int:
    """Extract what the sweep of the same settings would need, or verify what there is.

    Returns:
        The exit status: 1 if something was damaged.
    """
    if VERIFY.name in flags:
        from safe_ray.sweep.extraction import run_verify

        return 0 if run_verify(config) else EXIT_DAMAGED
    from safe_ray.sweep.begin import run_extract

    run_extract(config)
    return 0


COMMAND = Command(
    verb="extract",
    summary=(
        "Run the images of all tasks through the trunk and keep their dense maps, so that later\n"
        "sweeps find them in the feature store."
    ),
    examples=(
        ("", "what the default sweep needs"),
        ("--verify", "whether the feature stores are sound: exit status 0, or 1 if not"),
        ("backbone=rn50 'tasks.datasets=[dtd]' 'tasks.shots=[16]'", "one data set, 16 shots"),
    ),
    run=run,
    options=(VERIFY,),
)

if __name__ == "__main__":
    sys.exit(main(COMMAND))
