"""What a sweep that goes on is compared with: the settings that its winners depend on."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from safe_ray.config.checking import show
from safe_ray.config.sweep import SweepConfig
from safe_ray.redaction import redacted_values

REMEMBERED = "config.json"

# What a result does not depend on: where things lie, who does the work, and in what portions.
_INCIDENTAL: Any = {
    "sweep": True,
    "storage": True,
    "cluster": True,
    "evaluation": {"batch_size", "targets"},
    # An image that is left out changes an episode, by which the sweep's folder knows its tasks.
    "data": {"root", "skip_bad"},
    "features": {"store", "batch_size", "rows_per_file", "actors"},
    "training": {
        "workers",
        "cpus_per_worker",
        "gpus_per_worker",
        "pin",
        "compiled",
        "checkpoint_seconds",
        "max_failures",
    },
    # More candidates are trained after those that are there.
    "search": {"concurrent_trials", "candidates"},
    "tracking": True,
    "datasets": {"__all__": {"source", "on_change", "notes"}},
    "methods": {"__all__": {"title"}},
}


def essentials(config: SweepConfig) -> dict[str, Any]:
    """Return, as JSON values, what the winners of a sweep depend on.

    Targets are not among it: a winner may be tested on one more at any time. Passwords and tokens
    that stand in it, such as that of a URI, are replaced: these values are written to a file.
    """
    values = config.model_dump(mode="json", by_alias=True, exclude=_INCIDENTAL)
    for name in config.evaluation.targets:
        values["datasets"].pop(name, None)
    without: dict[str, Any] = redacted_values(values)
    return without


def difference(old: Mapping[str, Any], new: Mapping[str, Any]) -> str | None:
    """Return how two `essentials` differ, or None.

    Returns:
        For instance "search.candidates was 64, is 32"; the first three differences of several.
    """
    before, after = dict(_flatten(old)), dict(_flatten(new))
    changed = [
        f"{key} was {show(before.get(key))}, is {show(after.get(key))}"
        for key in [*before, *(key for key in after if key not in before)]
        if before.get(key) != after.get(key)
    ]
    if not changed:
        return None
    more = len(changed) - 3
    return "; ".join(changed[:3]) + (f"; and {more} more" if more > 0 else "")


def _flatten(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _flatten(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value
