"""One data set, checked: its class names, and an Arrow table with one row a sample for each split.

What can be wrong with a data set is found here, before anything expensive starts. Whether the
image bytes decode is found later, by whoever reads them all anyway.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from safe_ray.data.locations import first_line, locate
from safe_ray.data.prompts import (
    canonical_class_name,
    check_templates,
    named_templates,
    read_descriptions,
    render_names,
    render_prompts,
)
from safe_ray.data.readers import READERS, SPLITS, RawDataset
from safe_ray.data.readers.base import all_names, chosen_classes
from safe_ray.data.sources import ImageSource, image_sources
from safe_ray.errors import InputError, nearest
from safe_ray.files import resolve_path
from safe_ray.specs import DatasetSpec

Prompts = Literal["single", "ensemble", "descriptions"]


@dataclass(frozen=True)
class Manifest:
    """One data set.

    Attributes:
        name: of its spec.
        classes: the class names; a label is an index into them.
        templates: the prompts, with one `{}` each; empty if each class has sentences of its own.
        tables: for `train`, `val` and `test` (the last two may have no rows) a table with the
            columns `path` (string; unique in the data set, relative, with `/`), `label` (int32),
            and one of `image` (large_binary, the encoded bytes) or `file` (string, an absolute
            path or a URI; with `offset` and `length`, a range of its bytes).
        sentences: the prompts of each class, if they are no templates.
        ids: what the source calls the classes, if it has ids; two classes may then have one name.
        names: every name of each class, where a class has several; the first is in `classes`.
        called: what the source calls each class, where `options.classes` gives them other names.
        listed: the split was made from a listing of files (see `RawDataset`).
        notes: what was assumed in reading, in sentences.
    """

    name: str
    classes: tuple[str, ...]
    templates: tuple[str, ...]
    tables: Mapping[str, pa.Table]
    sentences: tuple[tuple[str, ...], ...] = ()
    ids: tuple[str, ...] | None = None
    names: tuple[tuple[str, ...], ...] = ()
    called: tuple[str, ...] = ()
    listed: bool = False
    notes: tuple[str, ...] = ()

    @property
    def prompts(self) -> list[list[str]]:
        """The prompts of each class."""
        if self.sentences:
            return [list(sentences) for sentences in self.sentences]
        if self.names:
            return render_names(self.names, self.templates)
        return render_prompts(self.classes, self.templates)

    def split(self, name: str) -> pa.Table:
        """Return the table of one split.

        Raises:
            InputError: there is no such split.
        """
        if name not in self.tables:
            raise InputError(
                f"Data set {self.name!r} has no split {name!r}: use one of "
                f"{', '.join(map(repr, self.tables))}."
            )
        return self.tables[name]

    def without_test(self) -> Manifest:
        """Return the data set without its test split, for whoever chooses something."""
        tables = {name: table for name, table in self.tables.items() if name != "test"}
        return replace(self, tables=tables)


def load_manifest(spec: DatasetSpec, root: Path, prompts: Prompts = "single") -> Manifest:
    """Read a data set and check it.

    Args:
        spec: its format names the reader; a relative path starts at `root`.
        root: the folder that data sets are kept in.
        prompts: `single` for the spec's templates, `ensemble` for its ensemble (its templates, if
            it has none), `descriptions` for the sentences of its JSON file.

    Raises:
        InputError: an unknown format, a missing file or column, a label outside the classes, two
            classes with one name, a class without training samples, a path that is absolute,
            leaves the folder or occurs twice (in one split or in two), or a template without
            exactly one `{}`.
    """
    if spec.format not in READERS:
        raise InputError(
            f"Data set {spec.name!r} has the unknown format {spec.format!r}: use one of "
            f"{', '.join(map(repr, sorted(READERS)))}.{nearest(spec.format, READERS)}"
        )
    templates = _templates(spec, prompts)
    raw = READERS[spec.format](spec, locate(spec.path, root))
    _check_classes(raw)
    names = _several_names(spec, raw)
    for split in SPLITS:
        _check_labels(raw, split)
    _check_paths(raw)
    if spec.target_of is None:
        _check_no_class_is_empty(raw)
    sentences: tuple[tuple[str, ...], ...] = ()
    if prompts == "descriptions":
        assert spec.descriptions is not None
        sentences = read_descriptions(resolve_path(spec.descriptions, root), raw.classes, raw.ids)
    return Manifest(
        name=spec.name,
        classes=raw.classes,
        templates=templates,
        tables=dict(raw.tables),
        sentences=sentences,
        ids=raw.ids,
        names=names,
        called=_called(spec, raw),
        listed=raw.listed,
        notes=raw.notes,
    )


def _templates(spec: DatasetSpec, prompts: Prompts) -> tuple[str, ...]:
    where = f"data set {spec.name!r}"
    if prompts == "descriptions":
        if spec.descriptions is None:
            raise InputError(
                f"data.prompts=descriptions needs sentences about the classes, and {where} names "
                "no file of them: add `descriptions: <file>.json` to its YAML file (beside "
                "data=<location>, descriptions=<file>.json on the command line), or choose "
                "data.prompts=single."
            )
        return ()
    if prompts == "ensemble" and spec.ensemble:
        if isinstance(spec.ensemble, str):
            return named_templates(spec.ensemble)
        return check_templates(spec.ensemble, where)
    return check_templates(spec.templates, where)


def read_image_bytes(table: pa.Table, rows: Sequence[int]) -> list[bytes]:
    """Return the encoded bytes of the images in some rows of a manifest's table, in their order.

    Raises:
        InputError: a file cannot be read.
    """
    return [_read(source) for source in image_sources(table.take(pa.array(rows, pa.int64())))]


def _read(source: ImageSource) -> bytes:
    try:
        return source.read()
    except OSError as error:
        raise InputError(
            f"The image {source.name} cannot be read ({first_line(error)}): restore it, or leave "
            "such images out with data.skip_bad=true."
        ) from error


def _check_classes(raw: RawDataset) -> None:
    if not raw.classes:
        raise InputError(f"{raw.source} has no classes: give it at least two.")
    if len(raw.classes) == 1:
        raise InputError(
            f"{raw.source} has the one class {raw.classes[0]!r}: there is nothing to tell apart, "
            "give it at least two."
        )
    first: dict[str, int] = {}
    for label, name in enumerate(raw.classes):
        canonical = canonical_class_name(name)
        if not canonical:
            raise InputError(f"{raw.source} has an empty class name {name!r}: name class {label}.")
        if canonical in first and raw.ids is None:
            other = first[canonical]
            raise InputError(
                f"{raw.source} has two classes of one name, {raw.classes[other]!r} (label {other}) "
                f"and {name!r} (label {label}): rename or merge them, for prompts cannot tell "
                "them apart."
            )
        first[canonical] = label


def _several_names(spec: DatasetSpec, raw: RawDataset) -> tuple[tuple[str, ...], ...]:
    """Return all names of the classes, if a class has several; no two classes may share one."""
    names = all_names(spec)
    if all(len(own) == 1 for own in names) or tuple(own[0] for own in names) != raw.classes:
        return ()
    first: dict[str, int] = {}
    for label, name in ((label, name) for label, own in enumerate(names) for name in own):
        canonical = canonical_class_name(name)
        if not canonical:
            raise InputError(f"{raw.source} has an empty class name {name!r}: name class {label}.")
        other = first.setdefault(canonical, label)
        if other != label:
            raise InputError(
                f"{raw.source} has the name {name!r} for two classes, {raw.classes[other]!r} and "
                f"{raw.classes[label]!r}: give it to one of them."
            )
    return names


def _called(spec: DatasetSpec, raw: RawDataset) -> tuple[str, ...]:
    chosen = chosen_classes(spec) or ()
    return chosen if len(chosen) == len(raw.classes) and chosen != raw.classes else ()


def _check_labels(raw: RawDataset, split: str) -> None:
    # With NumPy: Arrow 25's indices_nonzero crashes the process on a column without rows.
    labels = raw.tables[split].column("label").to_numpy()
    outside = np.flatnonzero((labels < 0) | (labels >= len(raw.classes)))
    if outside.size:
        row = int(outside[0])
        raise InputError(
            f"{raw.source}, split {split!r}, row {row} has the label {labels[row]}, but "
            f"the {len(raw.classes)} classes have labels 0 to {len(raw.classes) - 1}: correct the "
            "label or the class names."
        )


def _check_paths(raw: RawDataset) -> None:
    paths = pa.chunked_array(
        [chunk for split in SPLITS for chunk in raw.tables[split].column("path").chunks],
        pa.string(),
    )
    # Arrow checks a million paths in a second. Only Python finds the one that is wrong.
    bad = pc.match_substring_regex(paths, r"^$|^/|(^|/)\.\.(/|$)")
    if paths.null_count or pc.any(bad).as_py() or pc.count_distinct(paths).as_py() < len(paths):
        _refuse_paths(raw)


def _refuse_paths(raw: RawDataset) -> None:
    seen: dict[str, tuple[str, int]] = {}
    for split in SPLITS:
        for row, path in enumerate(raw.tables[split].column("path").to_pylist()):
            if not path or path.startswith("/") or ".." in path.split("/"):
                raise InputError(
                    f"{raw.source}, split {split!r}, row {row} has the path {path!r}: paths are "
                    "relative to the image folder and stay inside it."
                )
            if path in seen:
                other, other_row = seen[path]
                raise InputError(
                    f"{raw.source} has the image {path!r} twice, in split {other!r}, row "
                    f"{other_row}, and in split {split!r}, row {row}: leave it in one place, for "
                    "splits share no image."
                )
            seen[path] = (split, row)


def _check_no_class_is_empty(raw: RawDataset) -> None:
    present = set(pc.unique(raw.tables["train"].column("label")).to_pylist())
    empty = [name for label, name in enumerate(raw.classes) if label not in present]
    if empty:
        more = f" and {len(empty) - 5} more" if len(empty) > 5 else ""
        names = ", ".join(map(repr, empty[:5]))
        raise InputError(
            f"{raw.source} has no training image of {names}{more}: add some, or take "
            f"{'the class' if len(empty) == 1 else 'these classes'} out."
        )
