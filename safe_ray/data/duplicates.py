"""Images that are there twice: the same bytes, or the same picture in other bytes.

A picture is known again by a 64-bit difference hash (is each of 9x8 grey pixels brighter than its
left neighbour?), which finds candidates fast, and by a thumbnail of these 9x8 in colour, which
decides. Saved again with
another quality or in another size, a picture stays within both thresholds; cropped or turned it
does not. The hash alone would take most drawings on white ground for each other.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

HASH_BITS = 64
NEAR_BITS = 6
NEAR_LEVELS = 4.0
"""How far apart two thumbnails of one picture are at most: the mean over pixels, of 255 levels."""

ENOUGH_PIXELS = 144
"""The side of an image that is enough for a fingerprint."""

_COLUMNS, _ROWS = 9, 8
_SAMPLES = 16
_SAMPLED = (_SAMPLES * _COLUMNS, _SAMPLES * _ROWS)
THUMBNAIL_SHAPE = (_ROWS, _COLUMNS, 3)
THUMBNAIL_BYTES = _ROWS * _COLUMNS * 3
_LUMA = (0.299, 0.587, 0.114)
# Even ground is not quite even once it was compressed.
_EVEN_LEVELS = 3
# Where there is little contrast, as in pictures of one material, little difference is a lot.
_LEVELS_OF_CONTRAST = 0.1
_LEAST_LEVELS = 0.5
_ROWS_AT_ONCE = 128
_NEAREST_EACH = 32
# A band that most images share is cut into pieces, so that the work grows with the images alone.
_LARGEST_PIECE, _SMALLEST_PIECE, _COMPARISONS = 8192, 1024, 2**27


@dataclass(frozen=True)
class Fingerprint:
    """What an image is known again by.

    Attributes:
        digest: of the encoded bytes.
        bits: the difference hash, a number of 64 bits.
        thumbnail: uint8 `[8, 9, 3]`, mean colours.
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


def thumbnail_of(image: Image.Image) -> np.ndarray:
    """Return what the looks of an RGB image come to: uint8 `[8, 9, 3]`, means over its parts.

    Of a large image one pixel in many is looked at, 256 for each part: that takes some 30
    microseconds whatever its size.
    """
    wide, high = _SAMPLED
    if image.width < wide or image.height < high:
        return np.asarray(image.resize((_COLUMNS, _ROWS), Image.Resampling.BOX), np.uint8)
    sampled = image.resize(_SAMPLED, Image.Resampling.NEAREST)
    return np.asarray(sampled.reduce(_SAMPLES), np.uint8)


def bits_of(thumbnails: np.ndarray) -> np.ndarray:
    """Return the difference hashes of thumbnails `[n, 8, 9, 3]`, uint64 `[n]`."""
    grey = np.rint(thumbnails.astype(np.float32) @ np.array(_LUMA, np.float32))
    brighter = grey[:, :, 1:] > grey[:, :, :-1] + _EVEN_LEVELS
    packed = np.packbits(brighter.reshape(len(thumbnails), HASH_BITS), axis=1)
    return packed.view(">u8").ravel().astype(np.uint64)


def fingerprint(digest: str, image: Image.Image) -> Fingerprint:
    """Return what an RGB image is known again by; `digest` names its bytes."""
    thumbnail = thumbnail_of(image)
    return Fingerprint(digest, int(bits_of(thumbnail[None])[0]), thumbnail)


def find_twins(images: Sequence[Fingerprint], groups: Sequence[int]) -> list[Twin]:
    """Find for each image the most similar earlier image of another group, if it is the same.

    Args:
        images: their fingerprints.
        groups: of each image, such as its split or its class.

    Returns:
        At most one pair for each image, in the order of their second images.
    """
    if not images:
        return []
    return twins_among(
        [image.digest for image in images],
        np.array([image.bits for image in images], np.uint64),
        np.stack([image.thumbnail for image in images]),
        groups,
    )


def twins_of_looks(
    digests: Sequence[str], looks: Sequence[bytes], groups: Sequence[int]
) -> list[Twin]:
    """Find twins as `find_twins` does, among n images that are known by their looks.

    Args:
        digests: of their encoded bytes.
        looks: of each image the bytes of its thumbnail.
        groups: of each image.
    """
    thumbnails = np.frombuffer(b"".join(looks), np.uint8).reshape(len(looks), *THUMBNAIL_SHAPE)
    return twins_among(digests, bits_of(thumbnails), thumbnails, groups)


def example_of(twins: Sequence[Twin], names: Sequence[str]) -> str:
    """Return the words that name one of some twins, if there is one of the same bytes.

    Args:
        twins: at least one.
        names: of all images.
    """
    one = next((twin for twin in twins if twin.exact), twins[0])
    return f"{names[one.second]}, which {'is' if one.exact else 'looks like'} {names[one.first]}"


def twins_among(
    digests: Sequence[str], bits: np.ndarray, thumbnails: np.ndarray, groups: Sequence[int]
) -> list[Twin]:
    """Find twins as `find_twins` does, in columns.

    The same bytes have the same digest. Two hashes that are at most `NEAR_BITS` apart agree in one
    of `NEAR_BITS + 1` bands of their bits, so that only images which share a band are compared:
    100,000 in a few seconds. The bits of a band lie all over the picture, since those of one
    corner are the same in many. Of images that share a band with too many others, those whose
    hashes are near in order are compared.

    Args:
        digests: of the encoded bytes of n images.
        bits: uint64 `[n]`.
        thumbnails: uint8 `[n, rows, columns, 3]`.
        groups: of each image.
    """
    of_group = np.asarray(groups)
    found = {second: Twin(first, second, exact=True) for second, first in _same(digests, groups)}
    firsts, seconds, apart = _near(bits, thumbnails.mean(axis=(1, 2, 3)), of_group)
    order = np.lexsort((firsts, apart, seconds))
    firsts, seconds = firsts[order], seconds[order]
    edges = np.flatnonzero(np.diff(seconds)) + 1
    for begin, end in itertools.pairwise([0, *edges, len(seconds)]):
        if begin == end:
            continue
        second = int(seconds[begin])
        if second in found:
            continue
        others = firsts[begin:end]
        levels = _difference(thumbnails[others], thumbnails[second])
        best = int(levels.argmin())
        if levels[best] <= _limit(thumbnails[second]):
            found[second] = Twin(int(others[best]), second, exact=False)
    return [found[second] for second in sorted(found)]


def _same(digests: Sequence[str], groups: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Yield each image with the first earlier one of another group that has its digest."""
    first: dict[str, dict[int, int]] = {}
    for index, (digest, group) in enumerate(zip(digests, groups, strict=True)):
        places = first.setdefault(digest, {})
        earlier = [place for other, place in places.items() if other != group]
        if earlier:
            yield index, min(earlier)
        places.setdefault(group, index)


def _near(
    bits: np.ndarray, brightness: np.ndarray, groups: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return pairs of different groups that are near: firsts, later seconds, bits apart."""
    piece = min(max(_COMPARISONS // len(bits), _SMALLEST_PIECE), _LARGEST_PIECE)
    bands = NEAR_BITS + 1
    each = np.unpackbits(bits.astype(">u8").view(np.uint8).reshape(-1, 8), axis=1)
    keys: list[np.ndarray] = []
    for band in range(bands):
        own = each[:, band::bands]
        keys.append(own @ (1 << np.arange(own.shape[1], dtype=np.int64)))
    pairs: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
    for key in keys:
        order = np.lexsort((brightness, bits, key))
        edges = np.flatnonzero(np.diff(key[order])) + 1
        for run in np.split(order, edges):
            for begin in range(0, len(run), piece):
                rows = np.sort(run[begin : begin + piece])
                if len(rows) > 1 and (groups[rows] != groups[rows[0]]).any():
                    pairs += _near_among(rows, bits, brightness, groups)
    if not pairs:
        return (np.empty(0, np.int64),) * 3
    firsts, seconds, apart = map(np.concatenate, zip(*pairs, strict=True))
    _, once = np.unique(seconds * len(bits) + firsts, return_index=True)
    return firsts[once], seconds[once], apart[once]


def _near_among(
    rows: np.ndarray, bits: np.ndarray, brightness: np.ndarray, groups: np.ndarray
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Yield for some images, whose indices ascend, the nearest pairs of each."""
    for begin in range(0, len(rows), _ROWS_AT_ONCE):
        later = rows[begin : begin + _ROWS_AT_ONCE]
        earlier = rows[: begin + len(later)]
        apart = np.bitwise_count(bits[later, None] ^ bits[None, earlier])
        possible = (
            (apart <= NEAR_BITS)
            & (groups[later, None] != groups[None, earlier])
            & (earlier[None] < later[:, None])
        )
        if possible.sum() > _NEAREST_EACH * len(later):
            unlike = np.abs(brightness[later, None] - brightness[None, earlier])
            unlike = np.where(possible, unlike + 256.0 * apart, np.inf)
            most = min(_NEAREST_EACH, len(earlier)) - 1
            nearest = np.argpartition(unlike, most, axis=1)[:, : most + 1]
            kept = np.zeros_like(possible)
            np.put_along_axis(kept, nearest, True, axis=1)
            possible &= kept
        at, other = np.nonzero(possible)
        if len(at):
            yield earlier[other], later[at], apart[at, other].astype(np.int64)


def _difference(thumbnails: np.ndarray, thumbnail: np.ndarray) -> np.ndarray:
    return np.abs(thumbnails.astype(np.int16) - thumbnail).mean(axis=(1, 2, 3))


def _limit(thumbnail: np.ndarray) -> float:
    contrast = np.abs(thumbnail - thumbnail.mean(axis=(0, 1))).mean()
    return float(np.clip(_LEVELS_OF_CONTRAST * contrast, _LEAST_LEVELS, NEAR_LEVELS))
