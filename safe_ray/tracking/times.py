"""When things were done, in milliseconds since 1970, as MLflow counts."""

from __future__ import annotations

from dataclasses import dataclass


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
