"""Verification reads everything under a root, counts it, and sets aside what is damaged."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from safe_ray.features.verification import verify_stores
from tests.features.test_parts import find, overwrite, without_checksums
from tests.features.test_store import KEY, dense_map, every, open_store, sample, truncate, write


def test_sound_unverified_and_damaged_parts_are_told_apart(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    write(store, every(range(3), (0, 1)))
    old = write(store, every((3, 4), (0,)))
    without_checksums(old)
    changed = write(store, every((5, 6), (0, 1)))
    overwrite(changed, find(changed, dense_map(sample(6), 0).tobytes()), b"\1")
    cut = write(store, every((7,), (0,)))
    truncate(cut)
    other = open_store(tmp_path, replace(KEY, precision="bf16"))
    write(other, every((0,), (0,)))
    (tmp_path / "manifests").mkdir()

    seen: list[tuple[int, int]] = []
    found = {
        entry.folder: entry
        for entry in verify_stores(tmp_path, lambda done, total, _: seen.append((done, total)))
    }
    assert seen == [(done, 5) for done in range(1, 6)]
    assert found.keys() == {store.folder, other.folder}
    assert (found[other.folder].sound, found[other.folder].damage) == ((1,), ())
    entry = found[store.folder]
    assert (entry.sound, entry.unverified) == ((6,), (2,))
    assert {damage.path: damage.maps for damage in entry.damage} == {changed: 4, cut: None}
    first, *rest = entry.lines()
    assert first == (
        f"{store.folder}: 1 part (6 dense maps) sound, 1 part (2 dense maps) unverified, "
        "2 parts damaged"
    )
    assert all(line.endswith(".damaged") for line in rest)
    assert {path.name for path in store.folder.glob("*.damaged")} == {
        f"{changed.name}.damaged",
        f"{cut.name}.damaged",
    }
    assert all(not entry.damage for entry in verify_stores(tmp_path))


def test_a_root_without_stores_has_nothing_to_verify(tmp_path: Path) -> None:
    assert verify_stores(tmp_path / "absent") == []
    assert verify_stores(tmp_path) == []
