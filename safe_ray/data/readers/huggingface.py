"""A data set of Hugging Face's `datasets`: a folder of `save_to_disk`, or `hf://owner/name`.

The image column is the first with the feature Image, the label column the first ClassLabel (with
the names in it) or a column with a usual name; the options `image_column` and `label_column` name
others. `config` and `revision` choose within a repository. Splits are known by their names (train,
validation, test); without a test split the validation split is taken for one, or one is drawn, as
for folders (`test_share`, `split_seed`). Needs the extra `huggingface`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from safe_ray.data.locations import exists, first_line, is_folder, is_uri, join, read_bytes, walk
from safe_ray.data.readers.base import (
    BYTES_SCHEMA,
    FILES_SCHEMA,
    SPLITS,
    RawDataset,
    check_options,
)
from safe_ray.data.readers.columns import LABEL_COLUMNS, as_text, find_column
from safe_ray.data.readers.labels import label_classes
from safe_ray.data.readers.splitting import SPLIT_OPTIONS, divide, images, split_named
from safe_ray.errors import InputError
from safe_ray.outside import LARGEST_JSON, is_plain_name, parse_json
from safe_ray.specs import DatasetSpec

HUB_SCHEME = "hf://"
_OPTIONS = ("classes", "image_column", "label_column", "config", "revision", *SPLIT_OPTIONS)


def read(spec: DatasetSpec, location: str) -> RawDataset:
    """Read the data set; images stay in its memory-mapped files.

    Raises:
        InputError: the package is missing, no such data set, no image or label column, or a class
            that `options.classes` does not list.
    """
    check_options(spec, _OPTIONS)
    parts, notes = _parts(spec, location)
    first = next(iter(parts.values()))
    image = _image_column(spec, location, first)
    label = _label_column(spec, location, first)
    names_of_labels = getattr(first.features[label], "names", None)
    pieces: list[pa.Table] = []
    splits: list[np.ndarray] = []
    for split, part in parts.items():
        piece, unlabelled = _piece(location, split, part, image, label, many=len(parts) > 1)
        if unlabelled:
            notes.append(
                f"Left out of {location}: {images(unlabelled)} of {split} without a label."
            )
        pieces.append(piece)
        number = SPLITS.index(split_named(split) or "train")
        splits.append(np.full(piece.num_rows, number, np.int8))
    if len({tuple(piece.column_names) for piece in pieces}) > 1:
        raise InputError(
            f"{location} has some splits with images in it and others with paths: save it again "
            "with the images in it."
        )
    whole = pa.concat_tables(pieces)
    labelling = label_classes(
        spec, location, pc.unique(whole.column("name")).to_pylist(), names=names_of_labels
    )
    labels = labelling.of(whole.column("name"))
    named = len(parts) > 1 or split_named(next(iter(parts))) is not None
    paths = whole.column("path").to_pylist()
    division = divide(spec, paths, labels, np.concatenate(splits) if named else None)
    content = whole.column_names[-1]
    table = pa.table(
        {"path": paths, "label": labels, content: whole.column(content)},
        schema=BYTES_SCHEMA if content == "image" else FILES_SCHEMA,
    )
    return RawDataset(
        source=location,
        classes=labelling.classes,
        tables=division.tables(table),
        listed=division.listed,
        notes=(*labelling.notes, *division.notes, *notes),
    )


def _parts(spec: DatasetSpec, location: str) -> tuple[dict[str, Any], list[str]]:
    """The parts of the data set that are splits, by their own names."""
    loaded = _load(spec, location)
    if not isinstance(loaded, Mapping):
        return {str(loaded.split or "all"): loaded}, []
    parts = {name: part for name, part in loaded.items() if split_named(name) is not None}
    others = [name for name in loaded if name not in parts]
    if not parts:
        if len(others) == 1:
            return {others[0]: loaded[others[0]]}, []
        raise InputError(
            f"{location} has the splits {', '.join(map(repr, others))}, none of which is called "
            "train, validation or test: rename them."
        )
    notes = [f"Left out of {location}: its split {name!r}." for name in others]
    return parts, notes


def _load(spec: DatasetSpec, location: str) -> Any:
    try:
        import datasets
    except ImportError as error:
        raise InputError(
            f"Data set {spec.name!r} is read with the package datasets, which is not installed: "
            "run `pip install 'safe-ray[huggingface]'`."
        ) from error
    try:
        if location.startswith(HUB_SCHEME):
            name = location.removeprefix(HUB_SCHEME).removeprefix("datasets/").strip("/")
            return datasets.load_dataset(
                name, spec.options.get("config"), revision=spec.options.get("revision")
            )
        if not is_folder(location):
            raise InputError(
                f"Data set {spec.name!r}: there is no folder {location}; put it there, correct its "
                "path, or name one of the hub as hf://owner/name."
            )
        if not any(exists(join(location, file)) for file in ("state.json", "dataset_dict.json")):
            raise InputError(
                f"{location} was not written by save_to_disk of the package datasets: correct the "
                "path, or the data set's format."
            )
        _check_files(location)
        loaded = datasets.load_from_disk(location)
        for part in loaded.values() if isinstance(loaded, Mapping) else (loaded,):
            # Lengths and offsets must lie within the files before anything is read by them.
            part.data.table.validate(full=True)
        return loaded
    except InputError:
        raise
    # The libraries below raise errors of their own for all that can be wrong with a download.
    except Exception as error:
        raise InputError(
            f"{location} cannot be loaded as a Hugging Face data set ({first_line(error)}): "
            "correct its name, or save it to a folder where there is a network and give that."
        ) from error


def _check_files(location: str) -> None:
    """Check that what a folder of `save_to_disk` names lies in it, as files.

    Raises:
        InputError: it names something else.
    """
    # Neither pipes nor devices are listed.
    present = frozenset(walk(location))

    def values(file: str) -> Any:
        if file not in present:
            raise InputError(f"{location} has no file {file}: fetch it again.")
        return parse_json(read_bytes(join(location, file), largest=LARGEST_JSON))

    folders = [""]
    if "dataset_dict.json" in present:
        splits = values("dataset_dict.json")["splits"]
        _check_names(location, splits)
        folders = [f"{split}/" for split in splits]
    for folder in folders:
        state = values(f"{folder}state.json")
        values(f"{folder}dataset_info.json")
        for key in ("_data_files", "_indices_data_files"):
            names = [entry["filename"] for entry in state.get(key) or ()]
            _check_names(location, names)
            for name in names:
                if f"{folder}{name}" not in present:
                    raise InputError(f"{location} has no file {folder}{name}: fetch it again.")


def _check_names(location: str, names: Sequence[Any]) -> None:
    for name in names:
        if not is_plain_name(name):
            raise InputError(
                f"{location} names {name!r}, which is none of its files: fetch it again."
            )


def _image_column(spec: DatasetSpec, location: str, part: Any) -> str:
    kinds = {name: type(feature).__name__ for name, feature in part.features.items()}
    chosen = find_column(spec, location, list(kinds), "image_column", ())
    column = chosen or next((name for name, kind in kinds.items() if kind == "Image"), None)
    if column is None or kinds[column] != "Image":
        raise InputError(
            f"{location} has no {'such ' if chosen else ''}column of the feature Image (it has "
            f"{', '.join(f'{name}: {kind}' for name, kind in kinds.items())}): cast one to it with "
            "cast_column, or name it as options.image_column."
        )
    return column


def _label_column(spec: DatasetSpec, location: str, part: Any) -> str:
    features = part.features
    chosen = find_column(spec, location, list(features), "label_column", ())
    coded = (name for name, feature in features.items() if type(feature).__name__ == "ClassLabel")
    column = chosen or next(coded, None)
    column = column or find_column(spec, location, list(features), "label_column", LABEL_COLUMNS)
    if column is None:
        raise InputError(
            f"{location} has no column of labels (it has {', '.join(map(repr, features))}): name "
            "it as options.label_column."
        )
    return column


def _piece(
    location: str, split: str, part: Any, image: str, label: str, many: bool
) -> tuple[pa.Table, int]:
    """A table of `path`, `name`, and `image` or `file`; and how many rows had no label."""
    from datasets import Image

    part = part.select_columns([image, label]).cast_column(image, Image(decode=False))
    table: pa.Table = part.with_format("arrow")[:]
    rows = [f"{split}/{row:05d}" if many else f"{row:05d}" for row in range(table.num_rows)]
    table = table.append_column("path", pa.array(rows, pa.string()))
    coded = getattr(part.features[label], "names", None)
    names = table.column(label)
    if coded:
        # The hub's data sets give -1 to what they keep the labels of.
        labelled = pc.fill_null(pc.greater_equal(names, 0), False)
        table = table.filter(labelled)
        codes = table.column(label).combine_chunks().cast(pa.int64())
        largest = pc.max(codes).as_py()
        if largest is not None and largest >= len(coded):
            raise InputError(
                f"{location}, split {split!r} has the label {largest}, but names {len(coded)} "
                "classes: correct the label or the names."
            )
        text = pa.array(coded, pa.string()).take(codes)
    else:
        text = as_text(location, label, names)
    encoded = pc.struct_field(table.column(image), "bytes")
    where = pc.struct_field(table.column(image), "path")
    columns = {"path": table.column("path"), "name": text}
    if encoded.null_count == 0:
        columns["image"] = encoded.cast(pa.large_binary())
    elif encoded.null_count == len(encoded) and _are_files(where):
        columns["file"] = where
    else:
        row = pc.index(pc.is_null(encoded), True).as_py()
        raise InputError(
            f"{location}, split {split!r}, row {row} has no image: fill it in, or drop the row."
        )
    return pa.table(columns), len(rows) - table.num_rows


def _are_files(paths: pa.ChunkedArray) -> bool:
    texts = paths.to_pylist()
    return all(text is not None and (text.startswith("/") or is_uri(text)) for text in texts)
