"""Targets: test-only data sets for the heads of another."""

from __future__ import annotations

import pytest

from safe_ray.data.manifest import Manifest
from safe_ray.data.readers.base import FILES_SCHEMA
from safe_ray.errors import InputError
from safe_ray.specs import DatasetSpec
from safe_ray.sweep.targets import check_targets, target_columns

SPECS = {
    "photos": DatasetSpec("photos", "folder", "photos"),
    "sketches": DatasetSpec("sketches", "folder", "sketches", target_of="photos"),
    "others": DatasetSpec("others", "folder", "others"),
}


def manifest(name: str, classes: list[str], ids: list[str] | None = None) -> Manifest:
    tables = {split: FILES_SCHEMA.empty_table() for split in ("train", "val", "test")}
    return Manifest(name, tuple(classes), ("{}",), tables, ids=tuple(ids) if ids else None)


def test_a_target_is_fine_exactly_while_its_data_set_is_in_the_tasks() -> None:
    check_targets(SPECS, ["photos", "others"], ["sketches"])
    with pytest.raises(InputError, match=r"add that to tasks\.datasets"):
        check_targets(SPECS, ["others"], ["sketches"])


@pytest.mark.parametrize(
    ("datasets", "targets", "words"),
    [
        (["sketches"], [], "'sketches' is test-only: tune on 'photos'"),
        (["photos"], ["others"], "'others', which is a data set of its own"),
        (["others"], ["sketches"], "'sketches', which tests heads of 'photos'"),
    ],
)
def test_what_makes_no_sense_is_refused(
    datasets: list[str], targets: list[str], words: str
) -> None:
    with pytest.raises(InputError, match=words):
        check_targets(SPECS, datasets, targets)


def test_classes_are_matched_by_id_where_both_have_ids() -> None:
    source = manifest("photos", ["missile", "crane", "missile"], ["n1", "n2", "n3"])
    target = manifest("sketches", ["missile", "crane"], ["n3", "n2"])
    assert target_columns(source, target) == (2, 1)


def test_classes_are_matched_by_name_otherwise() -> None:
    source = manifest("photos", ["Tabby_cat", "dog"])
    assert target_columns(source, manifest("sketches", ["dog", "tabby cat"])) == (1, 0)
    with pytest.raises(InputError, match=r"has the class 'dogs', .* Did you mean 'dog'"):
        target_columns(source, manifest("sketches", ["dogs"]))
