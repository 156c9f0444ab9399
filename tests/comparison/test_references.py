"""Files of published figures: what the package has, and what is wrong in one's own."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import pytest

from safe_ray.comparison.references import load_reference, reference_of
from safe_ray.compose import ConfigTree
from safe_ray.errors import InputError
from safe_ray.report.intervals import mean_interval
from safe_ray.report.published import Reference

TREE = ConfigTree.of(None)
COOP11 = (
    "imagenet",
    "caltech101",
    "oxford_pets",
    "stanford_cars",
    "oxford_flowers",
    "food101",
    "fgvc_aircraft",
    "sun397",
    "dtd",
    "eurosat",
    "ucf101",
)
PUBLISHED = {
    "method": "One",
    "source": "a log",
    "protocol": "Some.",
    "chosen_on_test": None,
    "prompts": "templates",
    "checked": "second_hand",
    "averages": {"4": 60.0, "0": 50.0},
    "accuracies": {"4": {"eurosat": 60.0}},
}


def reference_with(folder: Path, **changes: object) -> Reference:
    method = {**PUBLISHED, **changes}
    content = {"backbone": "rn50", "shots": [1, 4], "datasets": ["eurosat"], "methods": [method]}
    file = folder / "mine.yaml"
    file.write_text(json.dumps(content))
    return load_reference(str(file))


def test_a_figure_is_that_of_its_shots_or_that_of_any(tmp_path: Path):
    reference = reference_with(tmp_path)
    (method,) = reference.methods
    assert (method.average(4), method.average(1)) == (60.0, 50.0)
    assert (method.cells(4), method.cells(1)) == ({"eurosat": 60.0}, {})
    assert (method.chosen_on_test, method.checked) == (None, "second_hand")


def test_a_reference_comes_back_from_its_own_values(tmp_path: Path):
    reference = reference_with(tmp_path)
    assert reference_of(json.loads(json.dumps(asdict(reference))), "a file") == reference


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"accuracies": {4: {"eurosatt": 50.0}}},
            "'One' has a figure for 'eurosatt'.*Did you mean 'eurosat'",
        ),
        ({"averages": {2: 50.0}}, "'One' has a figure for 2 shots.*among its shots: 1, 4"),
        ({"accuracies": {2: {}}}, "'One' has a figure for 2 shots"),
        ({"accuracies": {4: {"eurosat": 0.6e3}}}, "accuracies.*600"),
        ({"averages": {-1: 50.0}}, "averages.*-1"),
        ({"prompts": "words"}, 'prompts is "words", and must be templates or descriptions'),
    ],
)
def test_a_wrong_figure_is_told_in_a_sentence(
    tmp_path: Path, changes: dict[str, object], words: str
):
    with pytest.raises(InputError, match=f"the reference 'mine'.*{words}"):
        reference_with(tmp_path, **changes)


@pytest.mark.parametrize("name", TREE.choices("reference"))
def test_published_averages_are_the_means_of_their_columns_to_rounding(name: str):
    reference = load_reference(name)
    complete = [
        (method.average(shots), cells)
        for method in reference.methods
        for shots, cells in method.accuracies.items()
        if set(cells) == set(reference.datasets)
    ]
    assert len(complete) == {"rn50": 9, "vit_b_16": 1}[name]
    for average, cells in complete:
        mean = mean_interval(list(cells.values())).mean
        assert average == pytest.approx(mean, abs=0.005 + 1e-9)


@pytest.mark.parametrize("name", TREE.choices("reference"))
def test_a_reference_has_averages_at_each_of_its_shots_or_for_any(name: str):
    reference = load_reference(name)
    assert reference.shots == (1, 2, 4, 8, 16)
    assert reference.datasets == COOP11
    for method in reference.methods:
        assert set(method.averages) in ({0}, set(reference.shots))
        assert all(method.average(shots) is not None for shots in reference.shots)


def test_every_published_figure_has_its_source_and_says_whether_test_accuracy_chose_anything():
    methods = {method.method: method for method in load_reference("rn50").methods}
    assert all(method.source and method.protocol for method in methods.values())
    assert {name for name, method in methods.items() if method.chosen_on_test} == {
        "Tip-Adapter",
        "Tip-Adapter-F",
        "GDA",
        "LDC",
        "APE-T",
        "TIMO-S",
    }
    assert not any("SAFE" in name for name in methods)
