"""When things were done, in milliseconds since 1970, as MLflow counts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from safe_ray.usage import Sample


@dataclass(frozen=True)
class Span:
    """When something began and ended.

    Attributes:
        began: None if nobody knows; the time of recording stands for it.
        ended: None if nobody knows.
    """

    began: int | None = None
    ended: int | None = None


UNKNOWN = Span()


def milliseconds(seconds: float) -> int | None:
    """Return a time of `time.time()` for MLflow; None for 0, which is no time."""
    return round(1000 * seconds) if seconds > 0 else None


@dataclass(frozen=True)
class Load:
    """What machines were busy with, as MLflow's page of system metrics shows it.

    Attributes:
        curves: numbers over time, by MLflow's names.
        times: when each was measured.
    """

    curves: Mapping[str, Sequence[float]]
    times: Mapping[str, Sequence[int]]

    @staticmethod
    def of(samples: Sequence[Sample]) -> Load:
        """Return samples as curves."""
        names = dict.fromkeys(name for each in samples for name in each.values)
        own = {name: [each for each in samples if name in each.values] for name in names}
        return Load(
            {f"system/{name}": [each.values[name] for each in own[name]] for name in names},
            {f"system/{name}": [round(1000 * each.time) for each in own[name]] for name in names},
        )
