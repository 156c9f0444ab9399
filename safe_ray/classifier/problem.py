"""What `fit` is asked for, as a data set and the configuration of a sweep with one task."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa

from safe_ray.classifier.dividing import Deciding, checked_groups, validation_rows
from safe_ray.classifier.samples import (
    Labels,
    Names,
    Sample,
    is_data_set,
    names_of,
    samples_of,
)
from safe_ray.compose import load_config
from safe_ray.config import DatasetConfig, SweepConfig, validate_dataset
from safe_ray.data.manifest import Manifest, load_manifest
from safe_ray.data.prompts import canonical_class_name, check_templates
from safe_ray.data.readers.base import BYTES_SCHEMA, FILES_SCHEMA
from safe_ray.data.readers.splitting import SPLIT_OPTIONS
from safe_ray.data.sources import image_sources
from safe_ray.errors import InputError
from safe_ray.own_data import OPTIONS, PACKAGED, dataset_at, usual_templates

Shots = int | Literal["all"]

IN_MEMORY = "given"
"""What a task is called whose images were given one by one."""
_UNDIVIDED = ("folder", "table", "parquet", "webdataset", "huggingface")


@dataclass(frozen=True)
class LabelledSamples:
    """Images with their labels, and what may be known of how they were given.

    Attributes:
        config: of the data set.
        manifest: its images.
        labels: what the person calls each of the manifest's classes.
        independent: the person has said which images decide, or which belong together.
    """

    config: DatasetConfig
    manifest: Manifest
    labels: np.ndarray
    independent: bool = False


def labelled(
    images: Any,
    labels: Any,
    class_names: Names | None,
    templates: Sequence[str] | None,
    backbone: str,
    deciding: Deciding | None,
) -> LabelledSamples:
    """Return what was given to be fitted: images with their labels, or a place that has both.

    Raises:
        InputError: there are no labels, or see `from_images` and `from_place`.
    """
    if labels is not None:
        samples = samples_of(images)
        return from_images(samples, labels, class_names, templates, backbone, deciding)
    if not is_data_set(images):
        raise InputError(
            "fit needs the label of each image: give them, or a folder with a folder of images "
            "for each class."
        )
    return from_place(images, class_names, templates, None if backbone == PACKAGED else backbone)


def from_images(
    samples: Sequence[Sample],
    labels: Any,
    class_names: Names | None,
    templates: Sequence[str] | None,
    backbone: str | None = None,
    deciding: Deciding | None = None,
) -> LabelledSamples:
    """Return images that were given one by one; all of them may be trained on.

    Args:
        samples: the images.
        labels: of each.
        class_names: better words for some of the labels.
        templates: prompts; None for the usual ones of the backbone.
        backbone: its name; None for the one that comes with the package.
        deciding: which images decide, or which belong together.

    Raises:
        InputError: there is none, labels and images do not belong together, the classes have
            names that the prompts cannot tell apart, or no image is left to decide by.
    """
    if not samples:
        raise InputError("There are no images to fit: give some of each class.")
    found = Labels.of(labels, len(samples))
    labels = found.classes.tolist()
    names = names_of(labels, class_names, [(str(label),) for label in labels])
    prompts = usual_templates(backbone) if templates is None else tuple(templates)
    notes = []
    if templates is None:
        notes.append(f"the prompts are {', '.join(map(repr, prompts))}")
    if found.classes.dtype.kind in "biu" and len(class_names or {}) < len(found.classes):
        notes.append(
            "the labels are numbers, which say nothing to CLIP: name the classes with "
            f"class_names={{{found.classes[0]!s}: 'a word', ...}}"
        )
    config = validate_dataset(
        IN_MEMORY,
        {
            "format": IN_MEMORY,
            "path": IN_MEMORY,
            "templates": prompts,
            "notes": (f"{'; '.join(notes)}.",) if notes else (),
        },
    )
    others: Sequence[Sample] = ()
    indices, decides = found.indices, np.zeros(len(samples), bool)
    if deciding is not None and deciding.groups is not None:
        groups = checked_groups(deciding.groups, len(samples))
        decides = validation_rows(indices, groups, deciding.shots, deciding.seed)
    elif deciding is not None:
        others = deciding.samples
        indices = np.concatenate([indices, found.places(deciding.labels, len(others))])
        decides = np.arange(len(indices)) >= len(samples)
    table = _table([*samples, *others], indices)
    manifest = Manifest(
        IN_MEMORY,
        tuple(map(str, labels)),
        check_templates(config.templates, "templates"),
        {
            "train": table.filter(pa.array(~decides)),
            "val": table.filter(pa.array(decides)),
            "test": table.slice(0, 0),
        },
    )
    named = _named(manifest, labels, names)
    return LabelledSamples(config, named, found.classes, independent=deciding is not None)


def from_place(
    place: str | Path,
    class_names: Names | None,
    templates: Sequence[str] | None,
    backbone: str | None = None,
) -> LabelledSamples:
    """Return the images of a folder of class folders, or of what else `data=` may name.

    No test split is drawn from it; one that it has is not trained on.

    Args:
        place: the folder, file or URI.
        class_names: better words for some of the classes, by the names of their folders.
        templates: prompts; None for the usual ones.
        backbone: the one that was chosen, if any was.

    Raises:
        InputError: there is nothing that can be read, or the names of classes are no words.
    """
    chosen = [] if backbone is None else [f"backbone={backbone}"]
    settings: dict[str, Any] = {} if templates is None else {"templates": list(templates)}
    config = dataset_at(str(place), chosen, settings)
    if config.format in _UNDIVIDED:
        share = SPLIT_OPTIONS[1]
        config = dataset_at(str(place), chosen, {**settings, f"{OPTIONS}{share}": 0})
    manifest = load_manifest(config.spec(), Path.cwd())
    labels = manifest.called or manifest.classes
    usual = manifest.names or tuple((name,) for name in manifest.classes)
    named = _named(manifest, labels, names_of(labels, class_names, usual))
    return LabelledSamples(config, named, np.asarray(labels, np.str_))


def _named(manifest: Manifest, labels: Sequence[Any], names: Sequence[tuple[str, ...]]) -> Manifest:
    """Return a data set with these names for its classes.

    Raises:
        InputError: prompts cannot tell two classes apart.
    """
    _check_distinct(names, labels)
    classes = tuple(own[0] for own in names)
    called = tuple(map(str, labels))
    return replace(
        manifest,
        classes=classes,
        names=tuple(names) if any(len(own) > 1 for own in names) else (),
        called=called if called != classes else (),
    )


def labelled_test(place: str | Path) -> tuple[list[Sample], np.ndarray]:
    """Return the test images of a place with their labels; all of its images if it has no split.

    Raises:
        InputError: see `from_place`.
    """
    found = from_place(place, None, None)
    tables = found.manifest.tables
    split = "test" if tables["test"].num_rows else "train"
    table = tables[split]
    samples = [
        Sample(path, source)
        for path, source in zip(table["path"].to_pylist(), image_sources(table), strict=True)
    ]
    return samples, found.labels[table["label"].to_numpy()]


def _check_distinct(names: Sequence[tuple[str, ...]], labels: Iterable[Any]) -> None:
    first: dict[str, Any] = {}
    for label, name in ((label, n) for label, own in zip(labels, names, strict=True) for n in own):
        canonical = canonical_class_name(name)
        if not canonical:
            raise InputError(f"The class {label!r} has no name: give it one with class_names.")
        other = first.setdefault(canonical, label)
        if other is not label:
            raise InputError(
                f"The classes {str(other)!r} and {str(label)!r} are both called {name!r}, and "
                "prompts cannot tell them apart: give one another name with class_names."
            )


def _table(samples: Sequence[Sample], indices: np.ndarray) -> pa.Table:
    """Return a table as a manifest has it: places of files, or encoded images."""
    columns: dict[str, Any] = {
        "path": [sample.name for sample in samples],
        "label": pa.array(indices, pa.int32()),
    }
    if all(sample.source.file is not None for sample in samples):
        columns["file"] = [sample.source.file for sample in samples]
        return pa.table(columns, schema=FILES_SCHEMA)
    columns["image"] = [sample.source.read() for sample in samples]
    return pa.table(columns, schema=BYTES_SCHEMA)


def configure(
    given: LabelledSamples,
    shots: Shots,
    settings: Mapping[str, Any],
    config_dir: str | Path | None,
) -> SweepConfig:
    """Return the configuration of a sweep with this one task.

    Args:
        given: the data set.
        shots: images of each class to train on; `all` is every one that is not held out to choose
            by.
        settings: values by the names of settings.
        config_dir: a tree like `conf/` of the person's own.

    Raises:
        InputError: a setting does not exist or has a value that it cannot have.
    """
    number = isinstance(shots, int | np.integer) and not isinstance(shots, bool)
    if shots != "all" and not (number and int(shots) >= 1):
        raise InputError(f"shots is {shots!r}: give a whole number from 1 on, or 'all'.")
    overrides = [override(name, value) for name, value in settings.items()]
    return load_config([*overrides, f"tasks.shots=[{shots}]"], config_dir, given.config)


def override(name: str, value: Any) -> str:
    """Return a setting as the command line has it: `name=value` in Hydra's grammar.

    Raises:
        InputError: the value is of a type that no setting has.
    """
    return f"{name}={_written(name, value)}"


def _written(name: str, value: Any) -> str:
    if isinstance(value, np.generic):
        value = value.item()
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, str | Path):
        text = str(value)
        if re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", text):
            return text
        # A backslash is one by itself, but for those before a quote.
        escaped = re.sub(r"(\\*)('|$)", lambda at: at[1] * 2 + ("\\'" if at[2] else ""), text)
        return f"'{escaped}'"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key}: {_written(name, v)}" for key, v in value.items()) + "}"
    if isinstance(value, Sequence):
        return "[" + ", ".join(_written(name, item) for item in value) + "]"
    raise InputError(
        f"The setting {name} is a {type(value).__name__}: give a number, text, true or false, a "
        "list, or a range as {'low': ..., 'high': ...}."
    )
