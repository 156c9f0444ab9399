"""`plan.json`: what the first run of a sweep decided by its machines, which later runs keep to."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from safe_ray.config import SweepConfig
from safe_ray.errors import DamagedFileError
from safe_ray.features.precision import PRECISIONS
from safe_ray.files import read_record, write_record

PLAN = "plan.json"

_Decision = TypeVar("_Decision", bound=int | str)


def decided(config: SweepConfig, name: str, decide_now: Callable[[], _Decision]) -> _Decision:
    """Return what the first run of the sweep decided by its machines, or decide it now."""
    known = decisions(config)
    if name not in known:
        known[name] = decide_now()
        write_record(config.outputs / PLAN, known)
    decision: _Decision = known[name]
    return decision


def decisions(config: SweepConfig) -> dict[str, Any]:
    """Return what earlier runs of the sweep have decided, by name, as far as it makes sense."""
    try:
        known = read_record(config.outputs / PLAN) or {}
    except DamagedFileError:
        return {}
    return {name: value for name, value in known.items() if _can_be(name, value)}


def _can_be(name: str, value: Any) -> bool:
    if name == "precision":
        return value in PRECISIONS
    number = isinstance(value, int) and not isinstance(value, bool) and 0 < value < 2**31
    return number if name == "bank" else number or isinstance(value, str)
