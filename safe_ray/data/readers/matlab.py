"""MATLAB files of version 5: numbers, text, cells and structures, and nothing else.

SciPy's reader can be made to crash the process by a damaged file, and to allocate whatever a file
claims. This one knows what lists of images are made of, and holds every size against the bytes.

    MATLAB, "MAT-File Format", R2024b: level 5
"""

from __future__ import annotations

import math
import struct
import zlib
from collections.abc import Iterator
from typing import Any

import numpy as np

from safe_ray.outside import MIB

LARGEST = 256 * MIB
"""Of all variables together, decompressed."""

_HEADER = 128
_MATRIX, _COMPRESSED = 14, 15
_CELL, _STRUCT, _CHAR, _FIRST_NUMBER, _LAST_NUMBER = 1, 2, 4, 6, 15
_COMPLEX = 0x0800
_NUMBERS = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8"}
_NUMBERS |= {12: "i8", 13: "u8"}
_TEXTS = {1: "latin-1", 2: "latin-1", 16: "utf-8", 4: "utf-16", 17: "utf-16", 18: "utf-32"}
_DEEPEST = 16


def read_variables(content: bytes) -> dict[str, Any]:
    """Return the variables of a file by their names.

    Returns:
        Numbers as a NumPy array of one dimension, text as a string, a cell array as the list of its
        values, and an array of structures as a list of dictionaries; each column after column.

    Raises:
        ValueError: it is no MATLAB file of version 5, is damaged, comes to more than `LARGEST`
            bytes, or holds something else.
    """
    try:
        return dict(_variables(content))
    except (struct.error, zlib.error, StopIteration, KeyError, UnicodeDecodeError) as error:
        raise ValueError(f"it is damaged: {error}") from error


def _variables(content: bytes) -> Iterator[tuple[str, Any]]:
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
            kind, body = _next(_elements(memoryview(inflated), order))
        if kind != _MATRIX:
            raise ValueError("it holds something else than variables")
        yield _array(body, order, 0)


def _elements(content: memoryview, order: str) -> Iterator[tuple[int, memoryview]]:
    """Yield the type and the bytes of each element."""
    at = 0
    while at + 8 <= len(content):
        kind, size = struct.unpack_from(f"{order}II", content, at)
        if kind >> 16:
            # A small element has its size beside its type, and its bytes in place of the size.
            size, kind = kind >> 16, kind & 0xFFFF
            if size > 4:
                raise ValueError("it has a small element that is large")
            yield kind, content[at + 4 : at + 4 + size]
            at += 8
            continue
        end = at + 8 + size
        if end > len(content):
            raise ValueError("it is cut off")
        yield kind, content[at + 8 : end]
        at = end if kind == _COMPRESSED else end + -end % 8
    if any(content[at:]):
        raise ValueError("it is cut off")


def _next(elements: Iterator[tuple[int, memoryview]]) -> tuple[int, memoryview]:
    found = next(elements, None)
    if found is None:
        raise ValueError("it lacks a part of an array")
    return found


def _array(body: memoryview, order: str, depth: int) -> tuple[str, Any]:
    """Return the name and the value of an array."""
    if depth > _DEEPEST:
        raise ValueError("it is nested too deeply")
    if not body:
        return "", np.empty(0)
    parts = _elements(body, order)
    (flags,) = struct.unpack_from(f"{order}I", _next(parts)[1])
    dimensions = _next(parts)[1]
    sizes = struct.unpack(f"{order}{len(dimensions) // 4}i", dimensions)
    count = math.prod(sizes)
    if min(sizes, default=-1) < 0 or count > len(body):
        raise ValueError("it has an array that is larger than its bytes")
    name = bytes(_next(parts)[1]).decode("ascii")
    kind = flags & 0xFF
    if kind == _CELL:
        return name, [_value(parts, order, depth) for _ in range(count)]
    if kind == _STRUCT:
        fields = _fields(parts, order)
        return name, [
            {field: _value(parts, order, depth) for field in fields} for _ in range(count)
        ]
    if kind == _CHAR:
        return name, _text(parts, order) if count else ""
    if not _FIRST_NUMBER <= kind <= _LAST_NUMBER or flags & _COMPLEX:
        raise ValueError("it holds something else than numbers, text, cells and structures")
    stored, data = _next(parts)
    numbers = np.frombuffer(data, np.dtype(f"{order}{_NUMBERS[stored]}"))
    if len(numbers) != count:
        raise ValueError("it has an array of another size than its bytes")
    return name, numbers


def _value(parts: Iterator[tuple[int, memoryview]], order: str, depth: int) -> Any:
    kind, body = _next(parts)
    if kind != _MATRIX:
        raise ValueError("it has something else than an array in an array")
    return _array(body, order, depth + 1)[1]


def _fields(parts: Iterator[tuple[int, memoryview]], order: str) -> list[str]:
    (length,) = struct.unpack_from(f"{order}i", _next(parts)[1])
    names = bytes(_next(parts)[1])
    if not 0 < length <= 64 or len(names) % length:
        raise ValueError("it has a structure without fields")
    starts = range(0, len(names), length)
    return [names[at : at + length].partition(b"\0")[0].decode("ascii") for at in starts]


def _text(parts: Iterator[tuple[int, memoryview]], order: str) -> str:
    kind, data = _next(parts)
    encoding = _TEXTS[kind]
    if encoding in ("utf-16", "utf-32"):
        encoding += "-le" if order == "<" else "-be"
    return bytes(data).decode(encoding)
