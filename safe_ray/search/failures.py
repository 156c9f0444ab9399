"""Why a bank has no result, in one line, and whether trying again could help."""

from __future__ import annotations

import errno
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from safe_ray.errors import BlindNodeError, InputError

Kind = Literal["disk", "memory", "input", "error", "died", "node", "blind"]

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
_NODE_WORDS = ("node has died", "node has crashed", "node died", "node was preempted")
_LOST = ("LostNodeError", "PreemptionError", "NodeDiedError")
_LONGEST = 240
# A bank that outlives no node may be what ends them; one that no node sees is never trained.
_MOST_LOST_NODES = 20
_MOST_BLIND_NODES = 5


@dataclass(frozen=True)
class Failure:
    """What kept a bank from being trained.

    Attributes:
        kind: `disk` (full, or its quota is used up), `memory` (not enough), `input` (a person can
            mend it), `error` (anything else that the trial raised), `died` (its process is gone),
            `node` (its node is gone, with or without notice), `blind` (its node does not see the
            storage).
        reason: one line, without a full stop.
        node: Ray's id of the node, where it is one that must be left out.
    """

    kind: Kind
    reason: str
    node: str = ""

    @property
    def is_final(self) -> bool:
        """Whether the same trial would only fail in the same way again."""
        return self.kind in ("disk", "input")

    @property
    def counts(self) -> bool:
        """Whether it says something of the work, and not of the node that it was on."""
        return self.kind not in ("node", "blind")

    def to_json(self) -> dict[str, str]:
        """Return plain values, as a trial reports them."""
        return {"kind": self.kind, "reason": self.reason, "node": self.node}

    @staticmethod
    def from_json(value: Mapping[str, Any]) -> Failure:
        """Read what `to_json` returned."""
        return Failure(value["kind"], value["reason"], value.get("node", ""))


@dataclass
class Attempts:
    """How often a bank has failed so far; the one place that decides whether it is tried again.

    Attributes:
        counted: failures of the work itself.
        lost: nodes that went away under it.
        blind: nodes that did not see the storage.
    """

    counted: int = 0
    lost: int = 0
    blind: int = 0

    def again(self, failure: Failure, max_failures: int) -> bool:
        """Take note of a failure, and return whether the bank is tried again.

        Args:
            failure: the latest.
            max_failures: how often the work itself may fail and be tried again.
        """
        self.counted += failure.counts
        self.lost += failure.kind == "node"
        self.blind += failure.kind == "blind"
        return (
            not failure.is_final
            and self.counted <= max_failures
            and self.lost <= _MOST_LOST_NODES
            and self.blind <= _MOST_BLIND_NODES
        )


def failure_of(error: BaseException) -> Failure:
    """Return what an exception, with all that led to it, comes down to."""
    chain = list(_chain(error))
    blind = blindness_in(error)
    if blind is not None:
        return Failure("blind", blind.sentence, blind.node)
    for cause in chain:
        if _is_disk(cause):
            said = next((e for e in chain if isinstance(e, InputError)), cause)
            return Failure("disk", _line(said))
    for cause in chain:
        if isinstance(cause, MemoryError) or _has(cause, _MEMORY_WORDS):
            return Failure("memory", _line(cause))
    for cause in chain:
        # What the other workers raise when one is gone says nothing of the reason.
        if type(cause).__name__ in _LOST or _died_with_node(str(cause)):
            return Failure("node", "its node died")
    for cause in chain:
        if isinstance(cause, InputError):
            return Failure("input", _line(cause))
    return Failure("error", _line(chain[-1]))


def blindness_in(error: BaseException) -> BlindNodeError | None:
    """Return what says that a node does not see the storage, among all that led to an exception."""
    for cause in _chain(error):
        blind = cause if isinstance(cause, BlindNodeError) else BlindNodeError.found_in(str(cause))
        if blind is not None:
            return blind
    return None


def death_of(text: str) -> Failure:
    """Return the failure behind what Ray says of a trial that has told nothing itself."""
    blind = BlindNodeError.found_in(text)
    if blind is not None:
        return Failure("blind", blind.sentence, blind.node)
    lowered = text.lower()
    if "running low on memory" in lowered or "memory pressure" in lowered:
        return Failure("memory", "Ray ended its process because the node was low on memory")
    if _died_with_node(lowered):
        return Failure("node", "its node died")
    return Failure("died", "its process died")


def _died_with_node(text: str) -> bool:
    lowered = text.lower()
    return any(words in lowered for words in _NODE_WORDS)


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
