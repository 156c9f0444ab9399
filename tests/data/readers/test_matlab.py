"""MATLAB files: what SciPy writes is read, and what nobody should write is refused."""

from __future__ import annotations

import io
import struct
from typing import Any

import numpy as np
import pytest
from scipy.io import savemat

from safe_ray.data.readers.matlab import read_variables


def written(compressed: bool = False, **variables: Any) -> bytes:
    buffer = io.BytesIO()
    savemat(buffer, variables, do_compression=compressed)
    return buffer.getvalue()


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("kind", ["u1", "i2", "i4", "u8", "f4", "f8"])
def test_numbers_come_as_they_are(compressed: bool, kind: str) -> None:
    values = np.array([[1, 2, 3]], kind)
    found = read_variables(written(compressed, labels=values, other=np.array([[7]])))
    assert found["labels"].tolist() == [1, 2, 3]
    assert found["other"].tolist() == [7]


@pytest.mark.parametrize("compressed", [False, True])
def test_text_cells_and_structures(compressed: bool) -> None:
    cells = np.array(["cat", "größer", ""], dtype=object)
    records = np.array([(1, "a.jpg"), (2, "b.jpg")], dtype=[("class", object), ("fname", object)])
    found = read_variables(written(compressed, names=cells, word="hello", rows=records))
    assert found["names"][:2] == ["cat", "größer"]
    assert found["word"] == "hello"
    assert [row["fname"] for row in found["rows"]] == ["a.jpg", "b.jpg"]
    assert [row["class"].tolist() for row in found["rows"]] == [[1], [2]]


def test_matrices_come_column_after_column() -> None:
    found = read_variables(written(grid=np.array([[1, 2], [3, 4]])))
    assert found["grid"].tolist() == [1, 3, 2, 4]


def test_other_versions_and_other_things_are_refused() -> None:
    for content in (b"", b"x" * 200, b"\x89HDF\r\n\x1a\n" + bytes(300)):
        with pytest.raises(ValueError, match="another version than 5"):
            read_variables(content)
    with pytest.raises(ValueError, match="something else than numbers"):
        read_variables(written(z=np.array([1 + 2j])))


def test_sizes_are_held_against_the_bytes() -> None:
    content = written(labels=np.arange(100, dtype=np.float64)[None])
    dimensions = struct.pack("<ii", 1, 100)
    for rows, columns in ((1, 101), (2**20, 2**10), (-1, 100), (2**16, 2**16)):
        with pytest.raises(ValueError, match="than its bytes"):
            read_variables(content.replace(dimensions, struct.pack("<ii", rows, columns)))
    for end in range(130, len(content), 37):
        with pytest.raises(ValueError, match=r"cut off|lacks|damaged|than its bytes"):
            read_variables(content[:end])
