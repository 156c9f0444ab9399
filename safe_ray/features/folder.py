"""Folders of the feature store: whether there is room, and what killed writers left behind."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
import time
from pathlib import Path

from safe_ray.errors import InputError
from safe_ray.features.parts import PART_PREFIX

_LEFTOVER_AGE_S = 24 * 3600.0


def prepare_folder(root: Path, needed_bytes: int) -> None:
    """Make sure that `root` can be written to and has room for `needed_bytes`.

    Raises:
        InputError: it cannot be made, is read-only, or has too little free space.
    """
    try:
        root.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=root):
            pass
        free = shutil.disk_usage(root).free
    except OSError as error:
        raise InputError(
            f"The feature store {root} cannot be written to ({error.strerror}): name another "
            "folder with storage=<folder>."
        ) from error
    if needed_bytes > free:
        raise InputError(
            f"The feature store {root} needs {_gigabytes(needed_bytes)} more for this run, and "
            f"its disk has {_gigabytes(free)} free: free some space, or name another folder with "
            "storage=<folder>."
        )


def remove_leftovers(folder: Path, older_than_s: float = _LEFTOVER_AGE_S) -> int:
    """Delete the temporary files of writers that were killed; return how many there were."""
    removed = 0
    with contextlib.suppress(OSError):
        for entry in os.scandir(folder):
            if entry.name.startswith(f".{PART_PREFIX}") and (
                time.time() - entry.stat().st_mtime > older_than_s
            ):
                Path(entry.path).unlink()
                removed += 1
    return removed


def _gigabytes(count: int) -> str:
    return f"{count / 1e9:.2f} GB"
