"""Where the parts of a data set lie, and what to say when one is not there."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from safe_ray.data.locations import is_folder, is_uri, join, locate
from safe_ray.errors import InputError
from safe_ray.specs import DatasetSpec

HERE = "."


def inside(location: str, text: str) -> str:
    """Return the location of what an option names, relative to the data set's own location."""
    if not is_uri(location):
        return locate(text, Path(location))
    if is_uri(text):
        return text
    return location if text == HERE else join(location, text)


def check_folders(spec: DatasetSpec, folders: Iterable[str]) -> None:
    """Refuse the first folder that does not exist.

    Raises:
        InputError: with where to get it, if the data set says so.
    """
    for folder in folders:
        if not is_folder(folder):
            raise InputError(f"Data set {spec.name!r}: there is no folder {folder}; {remedy(spec)}")


def remedy(spec: DatasetSpec) -> str:
    """Return what to do about a missing part of a data set, as the end of a sentence."""
    where = f" ({spec.source.strip().rstrip('.')})" if spec.source else ""
    return (
        f"put it there{where}, correct the path and options of the data set, or name the folder of "
        "your data sets with data.root=<folder>."
    )
