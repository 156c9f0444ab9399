"""Files of the program's own: whole or known to be damaged."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from safe_ray.errors import DamagedFileError
from safe_ray.files import read_record, unwritable, write_record

VALUE = {"task": "a", "numbers": [1, 0.1, 1e-300, None], "nested": {"ü": [True]}}


def test_a_record_comes_back_as_it_was(tmp_path: Path) -> None:
    file = tmp_path / "record.json"
    assert read_record(file) is None
    write_record(file, VALUE)
    assert read_record(file) == VALUE


def test_a_record_of_a_version_without_digests_is_read(tmp_path: Path) -> None:
    file = tmp_path / "record.json"
    file.write_text('{"bank": 4}')
    assert read_record(file) == {"bank": 4}


@settings(max_examples=200, deadline=None)
@given(place=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7), cut=st.booleans())
def test_no_flipped_bit_and_no_lost_end_passes_for_the_record(
    tmp_path_factory: pytest.TempPathFactory, place: float, bit: int, cut: bool
) -> None:
    file = tmp_path_factory.getbasetemp() / "damaged.json"
    write_record(file, VALUE)
    content = bytearray(file.read_bytes())
    at = int(place * len(content))
    if cut:
        del content[at:]
    else:
        content[at] ^= 1 << bit
    file.write_bytes(content)
    # JSON may spell one value in two ways, and a record whose digest has lost its name is taken
    # for an older version's; nothing else passes.
    assert read(file) in ("damaged", VALUE) or "digest" not in json.loads(file.read_bytes())


def read(file: Path) -> object:
    try:
        return read_record(file)
    except DamagedFileError:
        return "damaged"


@pytest.mark.parametrize(
    ("number", "remedy"),
    [
        (errno.ENOSPC, "free some space there"),
        (errno.EDQUOT, "free some space there"),
        (errno.EACCES, "give this user the right to write there"),
        (errno.EROFS, "see to it that its folder can be written to"),
    ],
)
def test_a_refused_write_names_the_remedy_of_its_cause(
    tmp_path: Path, number: int, remedy: str
) -> None:
    sentence = str(unwritable(tmp_path, OSError(number, os.strerror(number))))
    assert f"Could not write {tmp_path} ({os.strerror(number)}): {remedy}, or name" in sentence
