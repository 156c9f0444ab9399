"""Why a bank has no result, in one line, and whether trying again could help."""

from __future__ import annotations

import errno
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from safe_ray.errors import InputError

Kind = Literal["disk", "memory", "input", "error", "died"]

_DISK = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
# Libraries written in other languages tell the operating system's reason in words only.
_DISK_WORDS = ("no space left on device", "disk quota exceeded", "file too large")
_MEMORY_WORDS = (
    "out of memory",
    "outofmemory",
    "cannot allocate memory",
    "can't allocate memory",
    "not enough memory",
    "running low on memory",
    "memory pressure",
)
_LONGEST = 240


@dataclass(frozen=True)
class Failure:
    """What kept a bank from being trained.

    Attributes:
        kind: `disk` (full, or its quota is used up), `memory` (not enough), `input` (a person can
            mend it), `error` (anything else that the trial raised), `died` (its process, or the
            process's node, is gone).
        reason: one line, without a full stop.
    """

    kind: Kind
    reason: str

    @property
    def is_final(self) -> bool:
        """Whether the same trial would only fail in the same way again."""
        return self.kind in ("disk", "input")

    def to_json(self) -> dict[str, str]:
        """Return plain values, as a trial reports them."""
        return {"kind": self.kind, "reason": self.reason}

    @staticmethod
    def from_json(value: Mapping[str, Any]) -> Failure:
        """Read what `to_json` returned."""
        return Failure(value["kind"], value["reason"])


def failure_of(error: BaseException) -> Failure:
    """Return what an exception, with all that led to it, comes down to."""
    chain = list(_chain(error))
    for cause in chain:
        if _is_disk(cause):
            said = next((e for e in chain if isinstance(e, InputError)), cause)
            return Failure("disk", _line(said))
    for cause in chain:
        if isinstance(cause, MemoryError) or _has(cause, _MEMORY_WORDS):
            return Failure("memory", _line(cause))
    for cause in chain:
        if isinstance(cause, InputError):
            return Failure("input", _line(cause))
    return Failure("error", _line(chain[-1]))


def death_of(text: str) -> Failure:
    """Return the failure behind what Ray says of an actor that died."""
    lowered = text.lower()
    if "running low on memory" in lowered or "memory pressure" in lowered:
        return Failure("memory", "Ray ended its process because the node was low on memory")
    if "node has died" in lowered or "node has crashed" in lowered or "node died" in lowered:
        return Failure("died", "its node died")
    return Failure("died", "its process died")


def _chain(error: BaseException) -> Iterator[BaseException]:
    """Yield the error and what it was caused by, across processes too, outermost first."""
    seen: set[int] = set()
    waiting = [error]
    while waiting:
        each = waiting.pop(0)
        if id(each) in seen:
            continue
        seen.add(id(each))
        yield each
        # Ray carries a worker's exception as `cause`, Ray Train those of all its workers.
        causes = [each.__cause__ or each.__context__, getattr(each, "cause", None)]
        causes += list(getattr(each, "worker_failures", {}).values())
        waiting += [cause for cause in causes if isinstance(cause, BaseException)]


def _is_disk(error: BaseException) -> bool:
    return (isinstance(error, OSError) and error.errno in _DISK) or _has(error, _DISK_WORDS)


def _has(error: BaseException, words: tuple[str, ...]) -> bool:
    text = f"{type(error).__name__}: {error}".lower()
    return any(word in text for word in words)


def _line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    text = lines[0].strip().rstrip(".") if lines else ""
    if not isinstance(error, InputError):
        name = type(error).__name__
        text = f"{name}: {text}" if text else name
    return text if len(text) <= _LONGEST else text[: _LONGEST - 3] + "..."
