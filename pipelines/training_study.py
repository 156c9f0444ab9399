"""`python -m pipelines.training_study`: what helps in training a pooling, decided by halves.

Each setting is one sweep of a suite that differs from the first, `base`, in one thing. One half of
the data sets says whether a setting helps; the other half, which had no say, confirms it or not
(`pipelines.halves`).
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from safe_ray.arguments import CONFIG_DIR, HELP, Arguments, answer, help_lines, parse
from safe_ray.errors import InputError

METHOD = "safe"
SETTINGS: dict[str, tuple[str, ...]] = {
    "base": (),
    # RA-FT and cross-modal tuning train at about half of CLIP's logit scale.
    "temperature": ("search.temperature=0.5",),
    "decay_to_start": ("search.decay_to_start={low: 0.1, high: 10.0, log: true}",),
    # ProLIP's weight without validation samples (arXiv 2410.05270).
    "distance_penalty": ("method.safe.space.distance_penalty=1/shots",),
    "logit_pull": ("search.logit_pull={low: 0.01, high: 1.0, log: true}",),
    "refit": ("search.refit=true",),
}
"""What each sweep is given beside the overrides of the command; the first is the baseline."""

OPTIONS = (CONFIG_DIR, HELP)
USAGE = """usage: python -m pipelines.training_study suite=NAME [sweep=NAME] [group.knob=value]

Search the suite once with each setting of a tuned pooling's training, and compare by halves of the
data sets. The same command again goes on where it stopped.

options:"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status, as `pipelines.benchmark` does."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    return answer(lambda: _study(parse(arguments, OPTIONS)))


def _study(given: Arguments) -> int:
    if HELP.name in given.flags:
        print("\n".join([USAGE, *help_lines(OPTIONS)]))
        return 0
    from pipelines.benchmark import run
    from pipelines.suites import load_suite, plan, split_suite

    name, overrides = split_suite(given.rest)
    if name is None:
        raise InputError("Which suite shall be run? Write suite=NAME, such as suite=embedded.")
    config_dir = given.value(CONFIG_DIR.name)
    suite = load_suite(name, config_dir)
    base = plan(suite, overrides, config_dir)
    planned = {
        setting: plan(suite, [*overrides, *more, f"sweep={base.name}-{setting}"], config_dir)
        for setting, more in SETTINGS.items()
    }

    def work() -> int:
        folders = {}
        for setting, one in planned.items():
            print(f"{setting}: {', '.join(SETTINGS[setting]) or 'nothing else'}", flush=True)
            folders[setting] = run(one)
        print("\n".join(report(folders)))
        return 0

    return answer(
        work,
        "Interrupted; nothing that was finished is lost. To go on, give the same command "
        f"with sweep={base.name}",
    )


def report(folders: dict[str, Path]) -> list[str]:
    """Return the lines of the report, as Markdown.

    Args:
        folders: of the sweeps, by setting.
    """
    from pipelines.halves import members, table
    from safe_ray.comparison.rows import read_rows

    results = {
        setting: {row.cell: row.accuracy for row in read_rows(folder) if row.method == METHOD}
        for setting, folder in folders.items()
    }
    datasets = [cell[0] for cell in results["base"]]
    return [*members(datasets), "", *table(results, "setting")]


if __name__ == "__main__":
    sys.exit(main())
