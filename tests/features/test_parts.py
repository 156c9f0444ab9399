"""A part is trusted when Arrow, its name and its checksums agree; a refused open is no damage."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from safe_ray.errors import InputError
from safe_ray.features import parts as parts_module
from safe_ray.features.index import INDEX_NAME
from safe_ray.features.parts import DamagedPart, open_part, patiently, write_batch
from safe_ray.features.store import MissingFeatures
from tests.features.test_store import (
    TOKENS,
    WIDTH,
    dense_map,
    every,
    files,
    open_store,
    sample,
    write,
)

ROOT = Path(__file__).parents[2]
ROW_LENGTH = TOKENS * WIDTH
PAIRS = every(range(6), (0, 1))


def written(folder: Path) -> Path:
    """A part of twelve maps, in a store of its own."""
    return write(open_store(folder), PAIRS)


with tempfile.TemporaryDirectory() as folder:
    PART_BYTES = written(Path(folder)).read_bytes()


def find(path: Path, what: bytes) -> int:
    return path.read_bytes().index(what)


def overwrite(path: Path, at: int, new: bytes) -> None:
    content = bytearray(path.read_bytes())
    assert content[at : at + len(new)] != new
    content[at : at + len(new)] = new
    path.write_bytes(content)


@settings(max_examples=300, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(0, len(PART_BYTES) - 1), st.integers(0, 255)), min_size=1, max_size=8
    )
)
def test_whatever_bytes_change_no_map_is_ever_wrong(changes: list[tuple[int, int]]) -> None:
    with tempfile.TemporaryDirectory() as root:
        path = written(Path(root))
        content = bytearray(PART_BYTES)
        for at, value in changes:
            content[at] = value
        path.write_bytes(content)
        store = open_store(Path(root))
        store.check([([sample(number)], (0, 1)) for number in range(6)])
        for name, view in PAIRS:
            if store.missing([name], [view]):
                with pytest.raises(MissingFeatures):
                    store.read([name], [view])
            else:
                np.testing.assert_array_equal(
                    store.read([name], [view])[0, 0], dense_map(name, view)
                )
        aside = path.with_name(path.name + ".damaged").exists()
        assert aside == bool(store.damage) == bool(store.missing([sample(0)], [0]))


@pytest.mark.parametrize(
    ("column", "reason"),
    [("sample", "match its name"), ("view", "match its name"), ("tokens", "1 of the 12 maps")],
)
def test_each_column_is_covered(tmp_path: Path, column: str, reason: str) -> None:
    path = written(tmp_path)
    at = {
        "sample": find(path, sample(3).encode()),
        "view": find(path, np.tile(np.array([0, 1], np.int16), 6).tobytes()),
        "tokens": find(path, dense_map(sample(3), 1).tobytes()) + 7,
    }[column]
    overwrite(path, at, b"5")
    with pytest.raises(DamagedPart, match=reason):
        open_part(path, ROW_LENGTH).check(np.arange(12))


def test_a_map_is_not_given_out_before_it_was_checked(tmp_path: Path) -> None:
    path = written(tmp_path)
    overwrite(path, find(path, dense_map(sample(3), 1).tobytes()), b"\1")
    store = open_store(tmp_path)
    np.testing.assert_array_equal(store.read([sample(2)], [1])[0, 0], dense_map(sample(2), 1))
    with pytest.raises(MissingFeatures, match=r"with 12 dense maps is damaged .* same command"):
        store.read([sample(2), sample(3)], [0, 1])
    assert store.missing([sample(2)], [0]) == [(sample(2), 0)]
    assert f"{path.name}.damaged" in files(store)


def test_of_a_pair_in_two_parts_the_sound_one_is_found(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    both = [write(store, every((0, 1), (0,))), write(store, every((1, 2), (0,)))]
    for path in both[:1]:
        overwrite(path, find(path, dense_map(sample(1), 0).tobytes()), b"\1")
    store = open_store(tmp_path)
    wanted = [sample(number) for number in range(3)]
    store.check([(wanted, (0,))])
    assert store.missing(wanted, (0,)) == [(sample(0), 0)]
    np.testing.assert_array_equal(store.read([sample(1)], [0])[0, 0], dense_map(sample(1), 0))


def test_a_map_is_checked_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written(tmp_path)
    store = open_store(tmp_path)
    read: list[int] = []
    real = parts_module.xxhash.xxh3_64_intdigest
    monkeypatch.setattr(
        parts_module.xxhash, "xxh3_64_intdigest", lambda row: read.append(len(row)) or real(row)
    )
    store.read([sample(2), sample(2), sample(4)], [1])
    store.check([([sample(2), sample(3)], (0, 1))])
    store.read([sample(2), sample(3), sample(4)], [1])
    assert len(read) == 2 + 3


def test_progress_of_a_check_counts_maps(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    write(store, every(range(3), (0, 1)))
    write(store, every(range(3, 5), (0, 1)))
    seen: list[tuple[int, int]] = []
    store.check([([sample(i) for i in range(9)], (0, 1))], lambda *at: seen.append(at[:2]))
    assert sorted(seen) in ([(4, 10), (10, 10)], [(6, 10), (10, 10)])


def without_checksums(path: Path) -> None:
    """Make the part what earlier versions wrote."""
    with pa.memory_map(str(path)) as source, pa.ipc.open_file(source) as reader:
        batch = reader.get_batch(0)
    path.unlink()
    write_batch(path, batch.drop_columns(["checksum"]))


def test_parts_of_older_versions_are_read_as_they_are(tmp_path: Path) -> None:
    path = written(tmp_path)
    without_checksums(path)
    assert open_part(path, ROW_LENGTH).checksums is None
    store = open_store(tmp_path)
    store.check([([sample(3)], (0, 1))])
    np.testing.assert_array_equal(store.read([sample(3)], [1])[0, 0], dense_map(sample(3), 1))


def test_a_part_under_another_name_is_damaged(tmp_path: Path) -> None:
    path = written(tmp_path)
    other = path.with_name("part-0123.arrow")
    path.rename(other)
    with pytest.raises(DamagedPart, match="do not match its name"):
        open_part(other)


def test_changed_bytes_of_the_index_never_lead_to_another_map(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    pairs = every(range(70), (0,))
    for pair in pairs:
        write(store, [pair])
    open_store(tmp_path)
    index = store.folder / INDEX_NAME
    overwrite(index, find(index, sample(7).encode()), sample(71).encode())
    reopened = open_store(tmp_path)
    assert reopened.missing([sample(71)], [0]) == [(sample(71), 0)]
    for name, view in pairs:
        np.testing.assert_array_equal(reopened.read([name], [view])[0, 0], dense_map(name, view))


def failing(number: int, times: int) -> Callable[[], str]:
    calls = iter(range(times + 1))

    def read() -> str:
        if next(calls) < times:
            raise OSError(number, os.strerror(number))
        return "read"

    return read


PASSING = [errno.EMFILE, errno.ESTALE, errno.EIO, errno.ENOMEM, errno.EACCES]


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts_module, "_WAITS_S", (0.0, 0.0, 0.0))


@pytest.mark.parametrize("number", PASSING, ids=errno.errorcode.get)
def test_a_refusal_that_passes_is_waited_for(impatient: None, number: int) -> None:
    assert patiently(Path("/a/part"), failing(number, 3)) == "read"


@pytest.mark.parametrize("number", PASSING, ids=errno.errorcode.get)
def test_a_refusal_that_stays_is_a_sentence_and_leaves_the_part(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, impatient: None, number: int
) -> None:
    path = written(tmp_path)
    before = files(open_store(tmp_path))

    def refuse(name: str) -> None:
        raise OSError(number, f"Failed to open local file '{name}'")

    with monkeypatch.context() as patched:
        patched.setattr(parts_module.pa, "memory_map", refuse)
        with pytest.raises(InputError) as refused:
            open_store(tmp_path)
    assert str(path) in str(refused.value)
    assert os.strerror(number) in str(refused.value)
    assert str(refused.value).endswith("give the same command again.")
    assert files(open_store(tmp_path)) == before


OUT_OF_FILES = """
import resource, sys, threading
from pathlib import Path
from safe_ray.errors import InputError
from tests.features.test_store import open_store, sample

root, seconds = Path(sys.argv[1]), float(sys.argv[2])
resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
held = []
try:
    while True:
        held.append(open("/dev/null"))
except OSError:
    pass

def release():
    while held:
        held.pop().close()

if seconds:
    threading.Timer(seconds, release).start()
try:
    store = open_store(root)
    print("missing", len(store.missing([sample(0)], [0])))
except InputError as error:
    release()
    print(error)
"""


@pytest.mark.timeout(120)
@pytest.mark.parametrize("release_after", [0.2, 0.0], ids=["for a moment", "for good"])
def test_a_process_without_file_descriptors_damages_nothing(
    tmp_path: Path, release_after: float
) -> None:
    path = written(tmp_path)
    result = subprocess.run(
        [sys.executable, "-c", OUT_OF_FILES, str(tmp_path), str(release_after)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert result.returncode == 0, result.stderr
    if release_after:
        assert result.stdout == "missing 0\n"
    else:
        assert "cannot be read (Too many open files): raise the limit of open" in result.stdout
    assert path.exists()
    assert files(open_store(tmp_path)) == {path.name, "key.json"}
