"""The feature store gives back exactly what was written, and never trusts a damaged part."""

from __future__ import annotations

import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from safe_ray.errors import InputError
from safe_ray.features import store as store_module
from safe_ray.features.folder import prepare_folder, remove_leftovers
from safe_ray.features.parts import open_part
from safe_ray.features.store import FeatureStore, MissingFeatures, StoreKey

TOKENS, WIDTH = 4, 6
NOBODY = 65534
KEY = StoreKey(
    trunk_digest="0123456789abcdef",
    preprocessing={"size": 64, "mean": (0.5, 0.5, 0.5)},
    precision="fp32",
    augmentation="1",
)


def sample(number: int) -> str:
    return f"{number:032x}"


def dense_map(name: str, view: int) -> np.ndarray:
    """A map that no other pair has."""
    start = np.float16(int(name, 16) % 64 + view / 64)
    return (start + np.arange(TOKENS * WIDTH) / 1024).reshape(TOKENS, WIDTH).astype(np.float16)


def open_store(root: Path, key: StoreKey = KEY) -> FeatureStore:
    return FeatureStore(root, key, tokens=TOKENS, width=WIDTH)


def write(store: FeatureStore, pairs: Sequence[tuple[str, int]]) -> Path:
    names, views = [name for name, _ in pairs], [view for _, view in pairs]
    return store.write_part(names, views, np.stack([dense_map(*pair) for pair in pairs]))


def parts(store: FeatureStore) -> list[str]:
    return sorted(path.name for path in store.folder.glob("part-*.arrow"))


def files(store: FeatureStore) -> set[str]:
    return {path.name for path in store.folder.iterdir()}


def every(samples: Sequence[int], views: Sequence[int]) -> list[tuple[str, int]]:
    return [(sample(number), view) for number in samples for view in views]


PAIRS = st.tuples(st.integers(0, 11).map(sample), st.integers(0, 4))


@settings(max_examples=60, deadline=None)
@given(
    written=st.lists(st.lists(PAIRS, min_size=1, max_size=12), max_size=4),
    samples=st.lists(st.integers(0, 13).map(sample), max_size=16),
    views=st.lists(st.integers(0, 5), max_size=6),
    reopen=st.booleans(),
)
def test_any_rows_in_any_order_are_found_missing_or_read_back(
    written: list[list[tuple[str, int]]], samples: list[str], views: list[int], reopen: bool
) -> None:
    with tempfile.TemporaryDirectory() as root:
        store = open_store(Path(root))
        for pairs in written:
            write(store, pairs)
        if reopen:
            store = open_store(Path(root))
        present = {pair for pairs in written for pair in pairs}
        assert len(store) == len(present)

        asked = [(name, view) for name in samples for view in views]
        absent = list(dict.fromkeys(pair for pair in asked if pair not in present))
        assert store.missing(samples, views) == absent
        if absent:
            with pytest.raises(MissingFeatures, match=absent[0][0]):
                store.read(samples, views)
            return
        maps = store.read(samples, views)
        assert maps.shape == (len(samples), len(views), TOKENS, WIDTH)
        assert maps.dtype == np.float16
        assert maps.flags.c_contiguous
        assert maps.flags.writeable
        for row, name in enumerate(samples):
            for column, view in enumerate(views):
                np.testing.assert_array_equal(maps[row, column], dense_map(name, view))
        paired = store.read_pairs([name for name, _ in asked], [view for _, view in asked])
        np.testing.assert_array_equal(paired, maps.reshape(len(asked), TOKENS, WIDTH))


def test_neighbouring_and_scattered_rows_of_many_parts_are_gathered_alike(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    for start in range(0, 40, 8):
        write(store, every(range(start, start + 8), (0, 1, 2)))
    order = np.random.default_rng(0).permutation(40)
    in_order = store.read([sample(number) for number in range(40)], [0, 1, 2])
    scattered = store.read([sample(number) for number in order], [2, 0])
    np.testing.assert_array_equal(scattered, in_order[order][:, [2, 0]])


def test_a_part_is_plain_uncompressed_arrow_whose_rows_need_no_copy(tmp_path: Path) -> None:
    path = write(open_store(tmp_path), every(range(3), (0, 1)))
    with pa.memory_map(str(path)) as source:
        batch = pa.ipc.open_file(source).get_batch(0)
        assert batch.schema.names == ["sample", "view", "tokens", "checksum"]
        assert batch.schema.field("tokens").type == pa.list_(pa.float16(), TOKENS * WIDTH)
        assert batch.column("view").type == pa.int16()
        rows = batch.column("tokens").values.to_numpy(zero_copy_only=True)
        np.testing.assert_array_equal(rows.reshape(6, TOKENS, WIDTH)[3], dense_map(sample(1), 1))


def test_writing_the_same_rows_again_changes_nothing(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    first = write(store, every(range(4), (0, 1)))
    assert write(open_store(tmp_path), every(range(4), (0, 1))) == first
    assert parts(store) == [first.name]
    assert len(open_store(tmp_path)) == 8


def test_a_pair_in_two_parts_is_one_row(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    write(store, every((0, 1), (0,)))
    write(store, every((1, 2), (0,)))
    assert len(store) == 3
    np.testing.assert_array_equal(store.read([sample(1)], [0])[0, 0], dense_map(sample(1), 0))


def test_what_others_write_is_seen_after_a_refresh(tmp_path: Path) -> None:
    reader, writer = open_store(tmp_path), open_store(tmp_path)
    write(writer, every((7,), (0,)))
    assert reader.missing([sample(7)], [0]) == [(sample(7), 0)]
    reader.refresh()
    assert reader.missing([sample(7)], [0]) == []


@pytest.mark.parametrize(
    "other",
    [
        replace(KEY, trunk_digest="fedcba9876543210"),
        replace(KEY, preprocessing={"size": 96, "mean": (0.5, 0.5, 0.5)}),
        replace(KEY, precision="bf16"),
        replace(KEY, augmentation="2"),
    ],
    ids=["weights", "preprocessing", "precision", "augmentation"],
)
def test_whatever_made_the_maps_keeps_them_apart(tmp_path: Path, other: StoreKey) -> None:
    write(open_store(tmp_path), every((0,), (0,)))
    store = open_store(tmp_path, other)
    assert store.missing([sample(0)], [0]) == [(sample(0), 0)]
    assert store.folder.parent == tmp_path
    assert store.folder != open_store(tmp_path).folder


def test_the_folder_says_what_it_holds(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    write(store, every((0,), (0,)))
    written = json.loads((store.folder / "key.json").read_text())
    assert StoreKey(**written).digest == KEY.digest


def truncate(path: Path) -> None:
    with open(path, "r+b") as file:
        file.truncate(path.stat().st_size * 2 // 3)


def empty(path: Path) -> None:
    path.write_bytes(b"")


def overwrite_the_end(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[:-64] + b"\0" * 64)


def other_shape(path: Path) -> None:
    other = FeatureStore(path.parent.parent / "other", KEY, tokens=2, width=3)
    shutil.copy(other.write_part([sample(0)], [0], np.zeros((1, 2, 3), np.float16)), path)


@pytest.mark.parametrize("damage", [truncate, empty, overwrite_the_end, other_shape])
def test_a_damaged_part_is_set_aside_and_its_rows_are_missing(tmp_path: Path, damage) -> None:  # type: ignore[no-untyped-def]
    store = open_store(tmp_path)
    write(store, every((0, 1), (0,)))
    broken = write(store, every((2, 3), (0,)))
    damage(broken)
    reopened = open_store(tmp_path)
    assert reopened.missing([sample(number) for number in range(4)], [0]) == every((2, 3), (0,))
    assert not broken.exists()
    assert broken.with_name(broken.name + ".damaged").exists()
    write(reopened, every((2, 3), (0,)))
    assert open_store(tmp_path).missing([sample(number) for number in range(4)], [0]) == []


def test_a_part_that_vanishes_while_in_use_is_named(tmp_path: Path) -> None:
    path = write(open_store(tmp_path), every((0,), (0,)))
    store = open_store(tmp_path)
    path.unlink()
    with pytest.raises(MissingFeatures, match=r"was removed since .* extracts its maps anew"):
        store.read([sample(0)], [0])
    store.refresh()
    assert len(store) == 0


def test_a_big_store_is_opened_from_its_index(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = open_store(tmp_path)
    for number in range(store_module._INDEX_AFTER_PARTS + 5):
        write(store, every((number,), (0, 1)))
    names = [sample(number) for number in range(store_module._INDEX_AFTER_PARTS + 5)]
    open_store(tmp_path)
    assert (store.folder / "index.arrow").exists()

    opened: list[Path] = []
    monkeypatch.setattr(
        store_module, "open_part", lambda path, row: opened.append(path) or open_part(path, row)
    )
    indexed = open_store(tmp_path)
    assert opened == []
    assert indexed.missing(names, [0, 1]) == []
    np.testing.assert_array_equal(indexed.read(names, [0, 1]), store.read(names, [0, 1]))


@pytest.mark.parametrize("content", [b"", b"ARROW1 but not really"])
def test_a_broken_index_is_only_a_lost_cache(tmp_path: Path, content: bytes) -> None:
    store = open_store(tmp_path)
    count = store_module._INDEX_AFTER_PARTS
    for number in range(count):
        write(store, every((number,), (0,)))
    open_store(tmp_path)
    (store.folder / "index.arrow").write_bytes(content)
    assert len(open_store(tmp_path)) == count


def test_a_part_cut_after_it_was_indexed_is_noticed(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    count = store_module._INDEX_AFTER_PARTS
    written = [write(store, every((number,), (0,))) for number in range(count)]
    open_store(tmp_path)
    truncate(written[3])
    assert open_store(tmp_path).missing([sample(3)], [0]) == [(sample(3), 0)]


WRITER = """
import sys
from pathlib import Path
import numpy as np
from tests.features.test_store import every, open_store, write
store = open_store(Path(sys.argv[1]))
for start in range(0, 30, 3):
    write(store, every(range(start, start + 3), (0, 1)))
    store.refresh()
"""


@pytest.mark.timeout(120)
def test_two_processes_write_the_same_rows_at_once(tmp_path: Path) -> None:
    root = Path(__file__).parents[2]
    command = [sys.executable, "-c", WRITER, str(tmp_path)]
    writers = [subprocess.Popen(command, cwd=root) for _ in range(2)]
    assert [writer.wait(timeout=100) for writer in writers] == [0, 0]
    store = open_store(tmp_path)
    assert len(parts(store)) == 10
    assert len(store) == 60
    assert sorted(path.name for path in store.folder.iterdir()) == sorted(
        [*parts(store), "key.json"]
    )
    for name, view in every(range(30), (0, 1)):
        np.testing.assert_array_equal(store.read([name], [view])[0, 0], dense_map(name, view))


@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan])
def test_values_that_do_not_fit_float16_are_refused(tmp_path: Path, value: float) -> None:
    maps = np.zeros((2, TOKENS, WIDTH), np.float16)
    maps[1, 2, 3] = value
    store = open_store(tmp_path)
    with pytest.raises(InputError, match=f"view 5 of sample {sample(1)}"):
        store.write_part([sample(0), sample(1)], [0, 5], maps)
    assert parts(store) == []


def test_maps_of_another_shape_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="Expected maps of"):
        open_store(tmp_path).write_part([sample(0)], [0], np.zeros((1, WIDTH, TOKENS), np.float16))


@contextmanager
def small_files_only() -> Iterator[None]:
    """The kernel refuses to let a file grow beyond 16 KiB, as a full disk would.

    The limit is the whole process's, the test runner's log file included: hold it briefly.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (16384, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_write_that_fails_leaves_nothing_and_names_the_folder(tmp_path: Path) -> None:
    store = FeatureStore(tmp_path, KEY, tokens=64, width=64)
    with small_files_only():
        store.write_part([sample(0)], [0], np.zeros((1, 64, 64), np.float16))
        with pytest.raises(InputError, match=f"Could not write {store.folder}"):
            store.write_part([sample(1), sample(2)], [0, 0], np.zeros((2, 64, 64), np.float16))
    assert len(parts(store)) == 1
    assert sorted(path.name for path in store.folder.iterdir()) == sorted(
        [*parts(store), "key.json"]
    )
    assert FeatureStore(tmp_path, KEY, tokens=64, width=64).missing([sample(0)], [0]) == []


def test_a_store_that_cannot_be_made_is_refused_at_once(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(InputError, match="cannot be written to"):
        prepare_folder(tmp_path / "file" / "store", 0)


@pytest.fixture
def read_only() -> Iterator[Path]:
    """A folder that this process cannot write to: root, who can write anywhere, becomes nobody."""
    user = os.geteuid()
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o555)
        if user == 0:
            os.seteuid(NOBODY)
        try:
            yield Path(folder)
        finally:
            os.seteuid(user)


def test_a_read_only_folder_is_refused_at_once(read_only: Path) -> None:
    assert list(read_only.iterdir()) == []
    with pytest.raises(InputError, match=r"cannot be written to .*Permission denied"):
        prepare_folder(read_only, 0)


def test_too_little_space_is_refused_at_once(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"needs 1000000000\.00 GB more"):
        prepare_folder(tmp_path, 10**18)
    prepare_folder(tmp_path / "new" / "store", 1000)
    assert list((tmp_path / "new" / "store").iterdir()) == []


def test_files_of_killed_writers_are_removed_when_they_are_old(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    whole = write(store, every((0,), (0,)))
    leftover = store.folder / f".{whole.name}.0123"
    leftover.write_bytes(b"half")
    assert remove_leftovers(store.folder) == 0
    os.utime(leftover, (0, 0))
    assert remove_leftovers(store.folder) == 1
    assert not leftover.exists()
    assert whole.exists()
