from __future__ import annotations

import copy
from pathlib import Path

import pytest
import yaml

from safe_ray.comparison.published import published_of, read_published
from safe_ray.compose import packaged_tree
from safe_ray.errors import InputError

FILES = sorted((packaged_tree() / "reference").glob("*.yaml"))
VALUES = {
    "backbone": "rn50",
    "shots": [1, 2],
    "datasets": ["birds", "cars"],
    "methods": [
        {
            "method": "GDA",
            "source": "a log",
            "protocol": "three seeds",
            "chosen_on_test": None,
            "prompts": "templates",
            "checked": "second_hand",
            "averages": {1: 50.0},
            "accuracies": {1: {"birds": 40.0, "cars": 60.0}},
        }
    ],
}


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_printed_averages_are_those_of_the_data_sets_to_rounding(file: Path):
    figures = read_published(file)
    assert figures.backbone == file.stem
    compared = 0
    for method in figures.methods:
        for shots, cells in method.accuracies.items():
            assert set(cells) == set(figures.datasets)
            mean = sum(cells.values()) / len(cells)
            assert method.average(shots) == pytest.approx(mean, abs=0.01)
            compared += 1
    assert compared


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_every_method_but_zero_shot_has_an_average_at_all_shots(file: Path):
    figures = read_published(file)
    for method in figures.methods:
        expected = {0} if method.method == "Zero-shot CLIP" else set(figures.shots)
        assert set(method.averages) == expected
        assert list(method.averages.values()) == sorted(method.averages.values())
        assert (method.prompts == "descriptions") == ("CuPL" in method.protocol)


def test_zero_shots_are_any_number():
    values = copy.deepcopy(VALUES)
    values["methods"][0]["averages"] = {0: 30.0}
    (method,) = published_of(values, "here").methods
    assert (method.average(1), method.average(2)) == (30.0, 30.0)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"averages": {4: 50.0}}, "figures at 4 shots, which are not among its shots"),
        ({"averages": {1: 0.5e3}}, "methods.0.averages.1 is wrong"),
        ({"prompts": "none"}, "methods.0.prompts is wrong"),
        ({"accuracies": {1: {"bird": 1.0}}}, "a figure for 'bird'.* Did you mean 'birds'"),
        ({"colour": 1}, "methods.0.colour is wrong"),
    ],
)
def test_what_is_wrong_is_told_in_a_sentence(changes, words: str):
    values = copy.deepcopy(VALUES)
    values["methods"][0] |= changes
    with pytest.raises(InputError, match=f"In here, .*{words}"):
        published_of(values, "here")


def test_figures_at_one_number_of_shots_are_not_for_the_comparison(tmp_path: Path):
    file = tmp_path / "one.yaml"
    file.write_text(yaml.safe_dump({**VALUES, "shots": 1}))
    assert read_published(file) is None
