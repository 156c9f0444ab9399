"""MATLAB files of version 5, whose sizes are looked at before SciPy allocates by them.

A compressed variable comes to a thousand times its size, and a cell array is as large as its
dimensions say, whatever follows.
"""

from __future__ import annotations

import io
import math
import struct
import zlib
from collections.abc import Iterator
from typing import Any

from safe_ray.outside import MIB

LARGEST = 256 * MIB
"""Of all variables together, decompressed."""

_HEADER = 128
_MATRIX, _COMPRESSED = 14, 15
_CELL, _STRUCT, _CHAR, _FIRST_NUMBER, _LAST_NUMBER = 1, 2, 4, 6, 15
_DEEPEST = 16


def read_variables(content: bytes) -> dict[str, Any]:
    """Return the variables of a file, without their dimensions of length 1.

    Raises:
        ValueError: it is no MATLAB file of version 5, is damaged, comes to more than `LARGEST`
            bytes, or holds something else than numbers, text, cells and structures.
    """
    from scipy.io import loadmat

    try:
        _check(content)
        return loadmat(io.BytesIO(content), squeeze_me=True)
    # Damaged bytes make SciPy's parser raise almost anything.
    except Exception as error:
        raise ValueError(" ".join(str(error).split()) or type(error).__name__) from error


def _check(content: bytes) -> None:
    order = {b"IM": "<", b"MI": ">"}.get(content[126:_HEADER])
    if order is None:
        raise ValueError("it is of another version than 5")
    left = LARGEST
    for kind, body in _elements(memoryview(content)[_HEADER:], order):
        if kind == _COMPRESSED:
            inflated = zlib.decompressobj().decompress(body, left)
            left -= len(inflated)
            if left <= 0:
                raise ValueError(f"it comes to more than {LARGEST} bytes")
            (inner, body), *_ = _elements(memoryview(inflated), order)
            kind = inner
        if kind != _MATRIX:
            raise ValueError("it holds something else than variables")
        _check_matrix(body, order, 0)


def _elements(content: memoryview, order: str) -> Iterator[tuple[int, memoryview]]:
    """Yield the type and the bytes of each element."""
    at = 0
    while at + 8 <= len(content):
        kind, size = struct.unpack_from(f"{order}II", content, at)
        if kind >> 16:
            # A small element has its size beside its type, and its bytes in place of the size.
            yield kind & 0xFFFF, content[at + 4 : at + 4 + min(4, kind >> 16)]
            at += 8
            continue
        end = at + 8 + size
        if end > len(content):
            raise ValueError("it is cut off")
        yield kind, content[at + 8 : end]
        at = end if kind == _COMPRESSED else end + -end % 8


def _check_matrix(body: memoryview, order: str, depth: int) -> None:
    if depth > _DEEPEST:
        raise ValueError("it is nested too deeply")
    if not body:
        return
    parts = _elements(body, order)
    _, flags = next(parts)
    _, dimensions = next(parts)
    (flag,) = struct.unpack_from(f"{order}I", flags)
    kind = flag & 0xFF
    sizes = struct.unpack(f"{order}{len(dimensions) // 4}i", dimensions)
    nested = kind in (_CELL, _STRUCT)
    if not nested and kind != _CHAR and not _FIRST_NUMBER <= kind <= _LAST_NUMBER:
        raise ValueError("it holds something else than numbers, text, cells and structures")
    if min(sizes, default=0) < 0 or math.prod(sizes) > len(body):
        raise ValueError("it has an array that is larger than its bytes")
    if nested:
        for inner, content in parts:
            if inner == _MATRIX:
                _check_matrix(content, order, depth + 1)
