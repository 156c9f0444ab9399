"""A look at every image of a data set: which are bad, and which are there twice."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from safe_ray.data.duplicates import (
    ENOUGH_PIXELS,
    Fingerprint,
    Twin,
    find_twins,
    fingerprint,
)
from safe_ray.data.images import BadImageError, decode_image, decoder_warning
from safe_ray.data.locations import first_line
from safe_ray.data.manifest import Manifest
from safe_ray.data.sources import ImageSource, image_sources
from safe_ray.features.inventory import no_progress, sample_digest
from safe_ray.progress import Progress

MOST_IMAGES = 50_000
"""Of a larger data set, this many images are looked at, evenly spaced."""

_SHOWN = 3
_SHOWN_BAD = 10
_AT_ONCE = 256


@dataclass(frozen=True)
class Look:
    """One image that was looked at.

    Attributes:
        split: its split.
        path: its path in the manifest.
        label: its class.
        seen: what it is known again by; None if it is bad.
        reason: why it is bad, or nothing.
        warning: what the decoder warns of, or nothing.
    """

    split: str
    path: str
    label: int
    seen: Fingerprint | None
    reason: str = ""
    warning: str = ""


@dataclass(frozen=True)
class Survey:
    """What was seen of a data set.

    Attributes:
        manifest: the data set.
        looks: the images that were looked at, in the order of the splits and their rows.
        total: how many images there are.
        across_splits: pairs of indices into `sound` that are in two splits.
        across_classes: likewise in two classes.
    """

    manifest: Manifest
    looks: Sequence[Look]
    total: int
    across_splits: Sequence[Twin]
    across_classes: Sequence[Twin]

    @property
    def sound(self) -> list[Look]:
        """The images that decode."""
        return [look for look in self.looks if look.seen is not None]

    @property
    def bad(self) -> list[Look]:
        """The images that cannot be used."""
        return [look for look in self.looks if look.reason]

    def lines(self) -> Iterator[str]:
        """Yield what was seen, in lines to print."""
        bad = self.bad
        warned = [look for look in self.looks if look.warning]
        if len(self.looks) < self.total:
            yield (
                f"{len(self.looks)} of {self.total} images were looked at, evenly spaced; what "
                "follows is about these."
            )
        if bad:
            yield f"{len(bad)} of {len(self.looks)} images cannot be used:"
            yield from _first(bad, _SHOWN_BAD, lambda look: f"{_place(look)}: {look.reason}")
        else:
            yield f"All {len(self.looks)} images decode."
        if warned:
            yield f"{len(warned)} of them with a warning; they may be damaged:"
            yield from _first(warned, _SHOWN, lambda look: f"{_place(look)}: {look.warning}")
        yield from self._twins(self.across_splits, "split", "a result on them is too good")
        yield from self._twins(self.across_classes, "class", "one of the classes is wrong")

    def _twins(self, twins: Sequence[Twin], what: str, meaning: str) -> Iterator[str]:
        if not twins:
            yield f"No image is in more than one {what}."
            return
        sound = self.sound
        exact = sum(twin.exact for twin in twins)
        subject = "1 image is" if len(twins) == 1 else f"{len(twins)} images are"
        yield (
            f"{subject} in another {what} as well ({exact} in the same bytes, "
            f"{len(twins) - exact} by their looks): {meaning}."
        )

        def pair(twin: Twin) -> str:
            one, other = sound[twin.first], sound[twin.second]
            how = "is" if twin.exact else "looks like"
            return f"{self._named(one)} {how} {self._named(other)}"

        yield from _first(twins, _SHOWN, pair)

    def _named(self, look: Look) -> str:
        return f"{_place(look)} ({self.manifest.classes[look.label]})"


def survey(
    manifest: Manifest,
    progress: Progress = no_progress,
    most: int = MOST_IMAGES,
    clock: Callable[[], float] = time.monotonic,
) -> Survey:
    """Read and decode the images of a data set, in threads, and compare them all.

    Args:
        manifest: the data set.
        progress: called after every few hundred images.
        most: of a larger data set, how many images to look at.
        clock: returns seconds.
    """
    sizes = {split: table.num_rows for split, table in manifest.tables.items()}
    total = sum(sizes.values())
    chosen = np.arange(total) if total <= most else np.arange(most) * total // most
    looks: list[Look] = []
    began = clock()
    with ThreadPoolExecutor(os.cpu_count(), "survey") as pool:
        first = 0
        for split, size in sizes.items():
            rows = chosen[(chosen >= first) & (chosen < first + size)] - first
            first += size
            for begin in range(0, len(rows), _AT_ONCE):
                part = manifest.tables[split].take(pa.array(rows[begin : begin + _AT_ONCE]))
                names = zip(part["path"].to_pylist(), part["label"].to_pylist(), strict=True)
                work = [
                    (split, path, label, source)
                    for (path, label), source in zip(names, image_sources(part), strict=True)
                ]
                looks += pool.map(_look, work)
                done = len(looks)
                progress(done, len(chosen), (clock() - began) / done * (len(chosen) - done))
    sound = [look for look in looks if look.seen is not None]
    prints = [look.seen for look in sound if look.seen is not None]
    splits = list(sizes)
    return Survey(
        manifest,
        looks,
        total,
        find_twins(prints, [splits.index(look.split) for look in sound]),
        find_twins(prints, [look.label for look in sound]),
    )


def _look(work: tuple[str, str, int, ImageSource]) -> Look:
    split, path, label, source = work
    try:
        encoded = source.read()
        image = decode_image(encoded, ENOUGH_PIXELS)
    except OSError as error:
        return Look(split, path, label, None, first_line(error))
    except BadImageError as error:
        return Look(split, path, label, None, str(error))
    seen = fingerprint(sample_digest(encoded), image)
    return Look(split, path, label, seen, warning=decoder_warning(encoded))


def _place(look: Look) -> str:
    return f"{look.split}: {look.path}"


def _first(items: Sequence[object], most: int, text: Callable[..., str]) -> Iterator[str]:
    for item in items[:most]:
        yield f"  {text(item)}"
    if len(items) > most:
        yield f"  and {len(items) - most} more"
