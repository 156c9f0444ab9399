"""`python -m safe_ray.track`: see `safe_ray.sweep.replaying`."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from safe_ray.arguments import (
    CONFIG_DIR,
    HELP,
    VERSION,
    Arguments,
    answer,
    parse,
    told_of_itself,
    usage,
)
from safe_ray.errors import InputError

OPTIONS = (CONFIG_DIR, VERSION, HELP)
USAGE = """\
usage: python -m safe_ray.track FOLDER... [tracking.KNOB=VALUE] [options]

Record sweeps in MLflow, from the files in their folders: whatever MLflow has not heard of them
yet, because it was away, slow or another one. What it has heard is not written twice.

examples:
  python -m safe_ray.track outputs/first
      where the sweep went, or to MLFLOW_TRACKING_URI if that is set
  python -m safe_ray.track outputs/first outputs/second tracking.uri=http://mlflow:5000
      two sweeps, to a server
  python -m safe_ray.track outputs/first tracking.heads=best tracking.register=false
      with the winners' heads only, and none of them registered

options:"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status.

    Returns:
        0 if MLflow has everything, 1 if it refuses some of it, 2 for a mistake in what was asked
        for or an MLflow that is away, 130 after an interruption.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    return answer(
        lambda: _track(parse(arguments, OPTIONS)),
        "Interrupted; what was recorded stays. To go on, give the same command.",
    )


def _track(given: Arguments) -> int:
    if told_of_itself(given, lambda: usage(USAGE, OPTIONS)):
        return 0
    from safe_ray.files import resolve_path

    overrides = [text for text in given.rest if "=" in text.partition("/")[0]]
    places = [resolve_path(text) for text in given.rest if text not in overrides]
    if not places:
        raise InputError(
            "There is nothing to record: name the folders of sweeps, as in outputs/first."
        )
    for text in overrides:
        if not text.startswith("tracking."):
            raise InputError(
                f"{text!r} is no setting of MLflow: here only tracking.<knob>=<value> has a "
                "meaning, for the sweep has ended."
            )
    from safe_ray.sweep.replaying import replay

    for place in dict.fromkeys(places):
        replay(place, overrides, given.value(CONFIG_DIR.name))
    return 0


if __name__ == "__main__":
    sys.exit(main())
