"""A stream of images to a stream of logits, in this process."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from safe_ray.prediction.images import Picture
from safe_ray.prediction.models import Model
from safe_ray.prediction.pictures import decoded


@dataclass(frozen=True)
class Classified:
    """Images that were classified together.

    Attributes:
        pictures: all of them.
        errors: why each could not be read; None for those that could.
        logits: float32 `[n, classes]`, of those that could, in their order, on the CPU.
    """

    pictures: Sequence[Picture]
    errors: Sequence[str | None]
    logits: Tensor


def classified(model: Model, pictures: Iterable[Picture], batch: int) -> Iterator[Classified]:
    """Classify images in their order; what is in memory does not grow with their number."""
    for some in decoded(pictures, model.preprocessing, batch):
        logits = (
            model.logits(some.pixels)
            if len(some.pixels)
            else torch.empty(0, len(model.class_names))
        )
        yield Classified(some.pictures, some.errors, logits)
