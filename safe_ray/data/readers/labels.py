"""Labels from what a source calls its classes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from safe_ray.data.codes import codes_among
from safe_ray.data.readers.base import chosen_classes, class_names
from safe_ray.errors import InputError, nearest
from safe_ray.specs import DatasetSpec

CLASSES_FILE = "classes.yaml"
"""In a folder of one's own: better words for the names of its class folders."""
FOLDER = "folder"

_SHOWN = 3


@dataclass(frozen=True)
class Labelling:
    """Which label each name of a class has.

    Attributes:
        classes: the class names; a label is an index into them.
        labels: the label of each name that the source has.
        notes: what was assumed, in sentences.
    """

    classes: tuple[str, ...]
    labels: Mapping[str, int]
    notes: tuple[str, ...] = ()

    def of(self, names: pa.Array | pa.ChunkedArray) -> np.ndarray:
        """Return the labels of many names, int32."""
        known = pa.array(list(self.labels), pa.string())
        values = np.fromiter(self.labels.values(), np.int32, len(self.labels))
        return values[pc.index_in(names, value_set=known).to_numpy(zero_copy_only=False)]


def label_classes(
    spec: DatasetSpec, source: str, found: Iterable[str], names: Sequence[str] | None = None
) -> Labelling:
    """Give labels to the classes that a source has.

    They follow `options.classes`, or the sorted names. Numbers are indices into the listed
    classes, and names in themselves where none are listed.

    Args:
        spec: of the data set.
        source: what has the classes, for errors.
        found: its names for them, in any order.
        names: the classes that the source itself lists; `options.classes` goes before them.

    Raises:
        InputError: a class that is not listed.
    """
    found = set(found)
    numbers = bool(found) and all(name.isascii() and name.isdigit() for name in found)
    listed = chosen_classes(spec) or (tuple(names) if names else None)
    shown = class_names(spec) or listed
    where = f"options.classes of data set {spec.name!r}" if chosen_classes(spec) else "its list"
    if listed is None:
        ordered = sorted(found, key=lambda name: (int(name), name)) if numbers else sorted(found)
        note = _note_on_codes(spec, source, ordered, numbers)
        labels = {name: label for label, name in enumerate(ordered)}
        return Labelling(tuple(ordered), labels, (note,) if note else ())
    assert shown is not None
    if numbers and not found <= set(listed):
        largest = max(found, key=int)
        if int(largest) >= len(listed):
            raise InputError(
                f"{source} has the label {largest}, but {where} names {len(listed)} classes, with "
                f"the labels 0 to {len(listed) - 1}: correct the label or the class names."
            )
        return Labelling(shown, {name: int(name) for name in sorted(found, key=int)})
    # Of two classes of one name the last would win here; the manifest refuses them.
    by_name = {name: label for label, name in enumerate(listed)}
    for name in sorted(found):
        if name not in by_name:
            raise InputError(
                f"{source} has the class {name!r}, which {where} does not list: add it there, or "
                f"correct it.{nearest(name, listed)}"
            )
    return Labelling(shown, {name: by_name[name] for name in sorted(found)})


def _note_on_codes(spec: DatasetSpec, source: str, names: Sequence[str], numbers: bool) -> str:
    """Return what to do about class names that say nothing, if they do not."""
    inside = spec.format == FOLDER
    if numbers:
        return (
            f"The classes are the numbers {names[0]} to {names[-1]}, which say nothing to "
            "CLIP: list their names, in the order of the numbers, under options.classes"
            + f", or write a line for each into {source}/{CLASSES_FILE} (`{names[0]}: a name`)"
            * inside
            + "."
        )
    codes = codes_among(names)
    if not codes:
        return ""
    line = f"`{codes[0]}: a name`, or `{codes[0]}: [a name, another]`"
    where = (
        f"write a line for each class into {source}/{CLASSES_FILE} ({line})"
        if inside
        else f"give classes=<file>.yaml with a line for each class ({line})"
    )
    return (
        f"Class names such as {', '.join(codes[:_SHOWN])} look like codes, which say nothing to "
        f"CLIP: {where}."
    )
