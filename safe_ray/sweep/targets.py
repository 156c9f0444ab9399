"""Targets: test-only data sets, such as ImageNet-Sketch, for the heads of another data set."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from safe_ray.data.manifest import Manifest
from safe_ray.data.prompts import canonical_class_name
from safe_ray.errors import InputError, nearest
from safe_ray.specs import DatasetSpec


def check_targets(
    specs: Mapping[str, DatasetSpec], datasets: Sequence[str], targets: Sequence[str]
) -> None:
    """Check that tasks are no targets, and that every target's source is among the tasks.

    Raises:
        InputError: which is not so.
    """
    for name in datasets:
        source = specs[name].target_of
        if source is not None:
            raise InputError(
                f"Data set {name!r} is test-only: tune on {source!r}, and test its heads here with "
                f"evaluation.targets=[{name}]."
            )
    for name in targets:
        source = specs[name].target_of
        if source is None:
            raise InputError(
                f"evaluation.targets names {name!r}, which is a data set of its own: only those "
                "with `target_of` in their YAML file test the heads of another."
            )
        if source not in datasets:
            raise InputError(
                f"evaluation.targets names {name!r}, which tests heads of {source!r}: add that to "
                "tasks.datasets."
            )


def target_columns(source: Manifest, target: Manifest) -> tuple[int, ...]:
    """Return for each class of the target its place among the classes of the source.

    Classes are matched by their ids where both have ids, else by their names.

    Raises:
        InputError: the source lacks a class of the target.
    """
    if source.ids is not None and target.ids is not None:
        known, wanted = source.ids, target.ids
    else:
        known = tuple(map(canonical_class_name, source.classes))
        wanted = tuple(map(canonical_class_name, target.classes))
    places = {name: place for place, name in enumerate(known)}
    for name in wanted:
        if name not in places:
            raise InputError(
                f"The target {target.name!r} has the class {name!r}, which {source.name!r} has "
                f"not: correct its class names.{nearest(name, known)}"
            )
    return tuple(places[name] for name in wanted)
