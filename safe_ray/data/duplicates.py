"""Images that are there twice: the same bytes, or the same picture in other bytes.

A picture is known again by a 64-bit difference hash (is each of 9x8 grey pixels brighter than its
left neighbour?), which finds candidates fast, and by a thumbnail, which decides. Saved again with
another quality or in another size, a picture stays within both thresholds; cropped or turned it
does not. The hash alone would take most drawings on white ground for each other.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

HASH_BITS = 64
NEAR_BITS = 6
NEAR_LEVELS = 4.0
"""How far apart two thumbnails of one picture are at most: the mean over pixels, of 255 levels."""

ENOUGH_PIXELS = 64
"""The side of an image that is enough for a fingerprint."""

_THUMBNAIL = 16
# Even ground is not quite even once it was compressed.
_EVEN_LEVELS = 3
# Where there is little contrast, as in pictures of one material, little difference is a lot.
_LEVELS_OF_CONTRAST = 0.1
_LEAST_LEVELS = 0.5
_CONFIRMED_EACH = 512
_ROWS_AT_ONCE = 128


@dataclass(frozen=True)
class Fingerprint:
    """What an image is known again by.

    Attributes:
        digest: of the encoded bytes.
        bits: the difference hash, a number of 64 bits.
        thumbnail: uint8 `[16, 16, 3]`.
    """

    digest: str
    bits: int
    thumbnail: np.ndarray


@dataclass(frozen=True)
class Twin:
    """Two images that are one.

    Attributes:
        first: the index of one.
        second: the index of a later one, which is like it.
        exact: their bytes are the same.
    """

    first: int
    second: int
    exact: bool


def fingerprint(digest: str, image: Image.Image) -> Fingerprint:
    """Return what an RGB image is known again by; `digest` names its bytes."""
    grey = np.asarray(image.convert("L").resize((9, 8), Image.Resampling.BOX), np.int16)
    bits = np.packbits(grey[:, 1:] > grey[:, :-1] + _EVEN_LEVELS)
    side = (_THUMBNAIL, _THUMBNAIL)
    thumbnail = np.asarray(image.resize(side, Image.Resampling.BOX), np.uint8)
    return Fingerprint(digest, int.from_bytes(bits.tobytes()), thumbnail)


def find_twins(images: Sequence[Fingerprint], groups: Sequence[int]) -> list[Twin]:
    """Find for each image the most similar earlier image of another group, if it is the same.

    All pairs are compared by their 64 bits: half a second for 20,000 images, three for 50,000.

    Args:
        images: their fingerprints.
        groups: of each image, such as its split or its class.

    Returns:
        At most one pair for each image, in the order of their second images.
    """
    if not images:
        return []
    bits = np.array([image.bits for image in images], np.uint64)
    thumbnails = np.stack([image.thumbnail for image in images])
    numbers: dict[str, int] = {}
    digests = np.array([numbers.setdefault(image.digest, len(numbers)) for image in images])
    of_group = np.asarray(groups)
    twins = []
    for begin in range(0, len(images), _ROWS_AT_ONCE):
        rows = np.arange(begin, min(begin + _ROWS_AT_ONCE, len(images)))
        earlier = np.arange(rows[-1])
        apart = np.bitwise_count(bits[rows, None] ^ bits[None, earlier]).astype(np.int16)
        apart[digests[rows, None] == digests[None, earlier]] = -1
        possible = (
            (apart <= NEAR_BITS)
            & (of_group[rows, None] != of_group[None, earlier])
            & (earlier[None] < rows[:, None])
        )
        for place in np.flatnonzero(possible.any(axis=1)):
            second = int(rows[place])
            others = np.flatnonzero(possible[place])
            others = others[np.argsort(apart[place, others], kind="stable")][:_CONFIRMED_EACH]
            if apart[place, others[0]] < 0:
                twins.append(Twin(int(others[0]), second, exact=True))
                continue
            levels = _difference(thumbnails[others], thumbnails[second])
            best = int(levels.argmin())
            if levels[best] <= _limit(thumbnails[second]):
                twins.append(Twin(int(others[best]), second, exact=False))
    return twins


def _difference(thumbnails: np.ndarray, thumbnail: np.ndarray) -> np.ndarray:
    return np.abs(thumbnails.astype(np.int16) - thumbnail).mean(axis=(1, 2, 3))


def _limit(thumbnail: np.ndarray) -> float:
    contrast = np.abs(thumbnail - thumbnail.mean(axis=(0, 1))).mean()
    return float(np.clip(_LEVELS_OF_CONTRAST * contrast, _LEAST_LEVELS, NEAR_LEVELS))
