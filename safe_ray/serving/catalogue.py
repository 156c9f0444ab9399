"""Which heads are served, and whether they have moved."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safe_ray.errors import InputError
from safe_ray.files import digest_json, resolve_path
from safe_ray.heads.artifact import CARD_FILE, load_card
from safe_ray.prediction.heads import MODELS, find_heads
from safe_ray.report.summary import SUMMARY_FILE


@dataclass(frozen=True)
class Entry:
    """A head that is served.

    Attributes:
        task: the name by which clients know it.
        folder: where it lies.
        card: of the head.
        digest: of the card, which has that of the weights in it.
    """

    task: str
    folder: Path
    card: Mapping[str, Any]
    digest: str

    def summary(self) -> dict[str, Any]:
        """Return what there is to know of it, as JSON values."""
        knobs = self.card["knobs"]
        return {
            "task": self.task,
            "dataset": self.card["dataset"],
            "shots": self.card["shots"],
            "seed": self.card["seed"],
            "backbone": self.card["backbone"].get("name", ""),
            "method": self.card["method"].get("title", ""),
            "alpha": knobs.get("alpha"),
            "classes": len(self.card["class_names"]),
            "digest": self.digest,
        }


def read_catalogue(named: Sequence[str]) -> dict[str, Entry]:
    """Return the heads that a person names, by their tasks.

    Args:
        named: see `safe_ray.prediction.heads.find_heads`.

    Raises:
        InputError: one of them is no head and no sweep, or two have a task of one name.
    """
    entries: dict[str, Entry] = {}
    for text in named:
        for task, folder in find_heads(text).items():
            if task in entries:
                raise InputError(
                    f"{entries[task].folder} and {folder} are both the head of {task}: serve one."
                )
            card = load_card(folder)
            entries[task] = Entry(task, folder, card, digest_json(card))
    return entries


def stamp(named: Sequence[str], entries: Mapping[str, Entry]) -> tuple[Any, ...]:
    """Return a value that changes when heads have moved, at the cost of a look at each.

    Args:
        named: see `read_catalogue`.
        entries: what that returned.

    Raises:
        InputError: MLflow does not answer, or knows a model no more.
    """
    from safe_ray.tracking.registry import version_of

    versions = [version_of(text) for text in named if text.startswith(MODELS)]
    sweeps = [resolve_path(text) / SUMMARY_FILE for text in named if not text.startswith(MODELS)]
    cards = [entry.folder / CARD_FILE for entry in entries.values()]
    return (*versions, *map(_look, (*sweeps, *cards)))


def _look(file: Path) -> tuple[int, ...] | None:
    try:
        found = file.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino
