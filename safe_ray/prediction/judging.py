"""Predictions beside labels: what a person wants to know of a head on images of their own."""

from __future__ import annotations

import heapq
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from safe_ray.files import write_atomically
from safe_ray.heads.calibration import BINS

SHOWN = 5
# A matrix of more classes than that is wider than a terminal.
MATRIX_CLASSES = 12
_KEPT = 20


@dataclass(frozen=True, order=True)
class Mistake:
    """An image that was taken for another class.

    Attributes:
        confidence: the probability of the class that was said.
        path: of the image.
        said: the class that was said.
        label: the class that it is.
    """

    confidence: float
    path: str
    said: str
    label: str


@dataclass
class Judgement:
    """What labelled images came to, however many: it keeps counts, and the worst mistakes.

    Attributes:
        class_names: in the order of the logits.
        confusion: int64 `[classes, classes]`, images by label and by what was said.
        mistakes: the most confident ones.
    """

    class_names: Sequence[str]
    confusion: np.ndarray
    mistakes: list[Mistake] = field(default_factory=list)
    _bins: dict[str, np.ndarray] = field(default_factory=dict)

    @classmethod
    def of(cls, class_names: Sequence[str]) -> Judgement:
        """Return one that has seen nothing."""
        size = len(class_names)
        return cls(class_names, np.zeros((size, size), np.int64))

    def add(
        self, paths: Sequence[str], labels: Sequence[int], logits: Tensor, temperature: float
    ) -> None:
        """Count labelled images.

        Args:
            paths: of n images.
            labels: class indices, one each.
            logits: `[n, classes]`.
            temperature: that calibrates them.
        """
        calibrated = torch.softmax(logits / temperature, -1)
        confidence, said = (part.numpy() for part in calibrated.max(-1))
        right = said == np.asarray(labels)
        np.add.at(self.confusion, (np.asarray(labels), said), 1)
        self._count("calibrated", confidence, right)
        self._count("raw", torch.softmax(logits, -1).amax(-1).numpy(), right)
        for place in np.flatnonzero(~right).tolist():
            one = Mistake(
                float(confidence[place]),
                paths[place],
                self.class_names[int(said[place])],
                self.class_names[labels[place]],
            )
            keep = heapq.heappush if len(self.mistakes) < _KEPT else heapq.heappushpop
            keep(self.mistakes, one)

    def _count(self, name: str, confidence: np.ndarray, right: np.ndarray) -> None:
        """Add up, in each bin of confidence, how many there are, how many right, how sure."""
        places = np.minimum((confidence * BINS).astype(int), BINS - 1)
        counts = np.stack(
            [np.bincount(places, values, BINS) for values in (right.astype(float), confidence)]
        )
        self._bins[name] = self._bins.get(name, np.zeros_like(counts)) + counts

    @property
    def samples(self) -> int:
        """How many images were counted."""
        return int(self.confusion.sum())

    @property
    def accuracy(self) -> float:
        """0 to 1, over all images."""
        return float(np.trace(self.confusion) / self.samples)

    @property
    def class_accuracies(self) -> dict[str, float]:
        """0 to 1, of each class that has images."""
        totals = self.confusion.sum(1)
        return {
            name: float(self.confusion[place, place] / totals[place])
            for place, name in enumerate(self.class_names)
            if totals[place]
        }

    @property
    def mean_per_class(self) -> float:
        """0 to 1, the mean over the classes with images of the accuracy in each."""
        return float(np.mean(list(self.class_accuracies.values())))

    def calibration_error(self, name: str) -> float:
        """Return the expected calibration error, of `raw` or of `calibrated` probabilities."""
        hits, sure = self._bins[name]
        return float(np.abs(hits - sure).sum() / self.samples)

    def confusions(self) -> list[tuple[int, str, str]]:
        """Return how often a class is taken for another one, the most frequent first."""
        off = self.confusion.copy()
        np.fill_diagonal(off, 0)
        pairs = [
            (int(off[i, j]), self.class_names[i], self.class_names[j])
            for i, j in zip(*np.nonzero(off), strict=True)
        ]
        return sorted(pairs, key=lambda pair: (-pair[0], pair[1], pair[2]))

    def to_json(self) -> dict[str, Any]:
        """Return all of it as JSON values."""
        return {
            "samples": self.samples,
            "accuracy": self.accuracy,
            "mean_per_class": self.mean_per_class,
            "calibration_error": {
                name: self.calibration_error(name) for name in ("raw", "calibrated")
            },
            "class_names": list(self.class_names),
            "class_accuracies": self.class_accuracies,
            "confusion": self.confusion.tolist(),
            "mistakes": [vars(one) for one in sorted(self.mistakes, reverse=True)],
        }

    def save(self, file: Path) -> None:
        """Write it as JSON."""
        write_atomically(file, json.dumps(self.to_json(), ensure_ascii=False, indent=1) + "\n")


def report(found: Judgement) -> list[str]:
    """Return what is worth reading of it, as lines of text."""
    ranked = sorted(found.class_accuracies.items(), key=lambda pair: (pair[1], pair[0]))
    lines = [
        f"{found.samples} labelled images: accuracy {100 * found.accuracy:.1f}%, mean per class "
        f"{100 * found.mean_per_class:.1f}%.",
        f"Expected calibration error: {100 * found.calibration_error('calibrated'):.1f}% "
        f"({100 * found.calibration_error('raw'):.1f}% before the temperature).",
    ]
    if len(found.class_names) <= MATRIX_CLASSES:
        lines += ["", *_matrix(found)]
    lines += ["", "Worst classes:"]
    lines += [f"  {name}: {100 * share:.1f}%" for name, share in ranked[:SHOWN]]
    confused = found.confusions()[:SHOWN]
    if confused:
        lines += ["", "Most often taken for another:"]
        lines += [f"  {label} as {said}: {count}" for count, label, said in confused]
    if found.mistakes:
        lines += ["", "Most confident mistakes:"]
        lines += [
            f"  {one.path}: {one.said} at {100 * one.confidence:.0f}%, and is {one.label}"
            for one in sorted(found.mistakes, reverse=True)[:SHOWN]
        ]
    return lines


def _matrix(found: Judgement) -> list[str]:
    names = list(found.class_names)
    width = max(map(len, names))
    widest = len(str(found.confusion.max()))
    cells = [max(widest, len(str(place + 1))) for place in range(len(names))]
    head = " ".join(f"{place + 1:>{cells[place]}}" for place in range(len(names)))
    lines = ["Images by class (rows) and by what was said (columns, in the same order):"]
    lines.append(f"  {'':<{width}}     {head}")
    for place, name in enumerate(names):
        row = " ".join(f"{n:>{w}}" for n, w in zip(found.confusion[place], cells, strict=True))
        lines.append(f"  {name:<{width}} {place + 1:>3} {row}")
    return lines
