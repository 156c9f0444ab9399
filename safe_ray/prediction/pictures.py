"""Images to pixels, several at a time, while the last ones are classified."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from safe_ray.data.images import BadImageError, decode_image
from safe_ray.data.locations import first_line, read_bytes
from safe_ray.data.views import Preprocessing, evaluation_view
from safe_ray.errors import InputError
from safe_ray.prediction.images import Picture

_AHEAD = 2
_Thing = TypeVar("_Thing")


@dataclass(frozen=True)
class Decoded:
    """Images that were read together.

    Attributes:
        pictures: all of them.
        errors: why each could not be read; None for those that could.
        pixels: uint8 `[n, 3, S, S]`, of those that could, in their order.
    """

    pictures: Sequence[Picture]
    errors: Sequence[str | None]
    pixels: Tensor


def decoded(
    pictures: Iterable[Picture], preprocessing: Preprocessing, batch: int
) -> Iterator[Decoded]:
    """Read and decode images in order, some batches ahead of whoever takes them.

    Memory holds the pixels of `_AHEAD + 1` batches, however many images there are.

    Args:
        pictures: what to read.
        preprocessing: of the backbone.
        batch: how many go together.
    """
    with ThreadPoolExecutor(os.cpu_count() or 1, "decode") as threads:

        def submit(some: Sequence[Picture]) -> list[Future[Tensor | str]]:
            return [threads.submit(read_pixels, picture, preprocessing) for picture in some]

        waiting: list[tuple[Sequence[Picture], list[Future[Tensor | str]]]] = []
        for some in batches(pictures, batch):
            waiting.append((some, submit(some)))
            if len(waiting) > _AHEAD:
                yield _gathered(*waiting.pop(0), preprocessing)
        for some, futures in waiting:
            yield _gathered(some, futures, preprocessing)


def batches(things: Iterable[_Thing], size: int) -> Iterator[Sequence[_Thing]]:
    """Yield tuples of so many, and of what is left at the end."""
    stream = iter(things)
    while some := tuple(itertools.islice(stream, size)):
        yield some


def read_pixels(picture: Picture, preprocessing: Preprocessing) -> Tensor | str:
    """Return the evaluation view, uint8 `[3, S, S]`, or why there is none."""
    try:
        return evaluation_view(decode_image(read_bytes(picture.file)), preprocessing)
    except BadImageError as error:
        return str(error)
    except (OSError, InputError) as error:
        return f"cannot be read: {first_line(error)}"


def _gathered(
    pictures: Sequence[Picture],
    futures: Sequence[Future[Tensor | str]],
    preprocessing: Preprocessing,
) -> Decoded:
    found = [future.result() for future in futures]
    errors = [one if isinstance(one, str) else None for one in found]
    good = [one for one in found if not isinstance(one, str)]
    empty = torch.empty((0, 3, preprocessing.size, preprocessing.size), dtype=torch.uint8)
    return Decoded(pictures, errors, torch.stack(good) if good else empty)
