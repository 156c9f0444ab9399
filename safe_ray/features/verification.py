"""Reading every part of the feature stores, to find what is damaged before a run meets it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from safe_ray.features.inventory import no_progress
from safe_ray.features.parts import (
    Damage,
    DamagedPart,
    counted,
    list_parts,
    open_part,
    patiently,
    set_aside,
)
from safe_ray.progress import Progress


@dataclass(frozen=True)
class Verification:
    """What one store's parts are like.

    Attributes:
        folder: the store's folder.
        sound: for each part whose maps all match their checksums, how many maps.
        unverified: likewise for parts of older versions, which have no checksums.
        damage: the damaged parts.
    """

    folder: Path
    sound: tuple[int, ...]
    unverified: tuple[int, ...]
    damage: tuple[Damage, ...]

    def lines(self) -> Iterator[str]:
        """Yield what a person is told: the store, its counts, and each damaged part."""
        yield (
            f"{self.folder}: {_parts_and_maps(self.sound)} sound, "
            f"{_parts_and_maps(self.unverified)} unverified, "
            f"{counted(len(self.damage), 'part')} damaged"
        )
        for damage in self.damage:
            yield f"  {damage}"


def verify_stores(root: Path, progress: Progress = no_progress) -> list[Verification]:
    """Read every part of every store under `root`, and set the damaged ones aside.

    Args:
        root: the folder of all feature stores; it may be absent.
        progress: called after each part, with parts.

    Returns:
        One entry a store, by folder.

    Raises:
        InputError: the operating system refuses to read a folder or a part.
    """
    listed = {folder: parts for folder in _folders(root) if (parts := list_parts(folder))}
    total = sum(map(len, listed.values()))
    size = sum(sum(parts.values()) for parts in listed.values())
    began, done, read = time.monotonic(), 0, 0
    verified = []
    for folder, parts in listed.items():
        sound: list[int] = []
        unverified: list[int] = []
        damage: list[Damage] = []
        for name, part_size in sorted(parts.items()):
            try:
                part = open_part(folder / name)
                part.check(np.arange(len(part.maps)))
                (unverified if part.checksums is None else sound).append(len(part.maps))
            except DamagedPart as damaged:
                damage.append(set_aside(folder / name, damaged))
            except FileNotFoundError:
                # A run has just found it damaged and set it aside.
                pass
            done, read = done + 1, read + part_size
            left = (time.monotonic() - began) / read * (size - read) if read else None
            progress(done, total, left)
        verified.append(Verification(folder, tuple(sound), tuple(unverified), tuple(damage)))
    return verified


def _folders(root: Path) -> list[Path]:
    try:
        return patiently(root, lambda: sorted(path for path in root.iterdir() if path.is_dir()))
    except (FileNotFoundError, NotADirectoryError):
        return []


def _parts_and_maps(maps: tuple[int, ...]) -> str:
    if not maps:
        return "0 parts"
    return f"{counted(len(maps), 'part')} ({counted(sum(maps), 'dense map')})"
