from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import pytest

from pipelines.suites import Suite, load_reference, load_suite, plan, reference_of
from safe_ray.compose import ConfigTree, load_dataset, packaged_tree
from safe_ray.data.manifest import load_manifest
from safe_ray.errors import InputError
from safe_ray.report.intervals import mean_interval
from safe_ray.report.published import Reference

TREE = ConfigTree.of()
SUITES = TREE.choices("suite")
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

SMALL = {
    "backbone": "pictogram",
    "groups": [
        {"datasets": ["icon_kinds"], "shots": [1, 2], "seeds": [1]},
        {"datasets": ["game_icons"], "shots": [1], "seeds": [1]},
    ],
}


def written(folder: Path, content: object, name: str = "mine") -> str:
    file = folder / f"{name}.yaml"
    file.write_text(json.dumps(content))
    return str(file)


def suite_of(folder: Path, **changes: object) -> Suite:
    return load_suite(written(folder, {**SMALL, **changes}))


@pytest.mark.parametrize("name", SUITES)
def test_every_suite_composes_to_sweeps_of_data_sets_that_are_known(name: str, tmp_path: Path):
    planned = plan(load_suite(name), [f"storage={tmp_path}"])
    assert planned.tasks
    for dataset in planned.suite.datasets:
        assert load_dataset(TREE, dataset).name == dataset
    assert {sweep.backbone.name for sweep in planned.sweeps} == {planned.suite.backbone}


@pytest.mark.parametrize("name", SUITES)
def test_every_suite_opens_with_its_command_and_what_to_expect(name: str):
    text = (packaged_tree() / "suite" / f"{name}.yaml").read_text()
    opening = [line for line in text.splitlines() if line.startswith("#")]
    assert text.startswith("# ")
    assert any(
        line.startswith(f"# command: python -m pipelines.benchmark suite={name}")
        for line in opening
    )
    assert any(line.startswith("# expect: ") for line in opening)


def test_coop11_is_the_fields_benchmark():
    suite = load_suite("coop11")
    (group,) = suite.groups
    assert suite.backbone == "rn50"
    assert group.datasets == COOP11
    assert (group.shots, group.seeds) == ((1, 2, 4, 8, 16), (1, 2, 3))
    assert suite.reference is not None


def test_the_embedded_suite_asks_no_data_set_for_more_shots_than_it_has():
    for group in load_suite("embedded").groups:
        for dataset in group.datasets:
            train = load_manifest(load_dataset(TREE, dataset).spec(), Path()).split("train")
            labels = train.column("label").to_pylist()
            assert max(group.shots) <= min(labels.count(label) for label in set(labels))


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


def test_each_group_is_a_sweep_of_its_own_in_one_experiment(tmp_path: Path):
    planned = plan(suite_of(tmp_path), ["sweep=first", f"storage={tmp_path}"])
    assert [sweep.sweep for sweep in planned.sweeps] == ["first-0", "first-1"]
    assert {sweep.experiment for sweep in planned.sweeps} == {"first"}
    assert planned.folder == tmp_path / "outputs" / "first"
    assert [task.id for task in planned.tasks] == [
        "icon_kinds-1shot-seed1",
        "icon_kinds-2shot-seed1",
        "game_icons-1shot-seed1",
    ]


def test_a_single_group_is_the_sweep_of_the_benchmarks_own_name(tmp_path: Path):
    planned = plan(suite_of(tmp_path, groups=SMALL["groups"][:1]))
    assert [sweep.sweep for sweep in planned.sweeps] == ["mine"]
    assert planned.sweeps[0].outputs == planned.folder


def test_the_command_line_goes_over_the_suites_own_settings(tmp_path: Path):
    suite = suite_of(tmp_path, overrides=["search.candidates=5", "features.views=3"])
    planned = plan(suite, ["search.candidates=7", "tasks.seeds=[4,5]", "sweep=null"])
    assert [sweep.search.candidates for sweep in planned.sweeps] == [7, 7]
    assert [sweep.features.views for sweep in planned.sweeps] == [3, 3]
    assert {task.seed for task in planned.tasks} == {4, 5}
    assert planned.name == "mine"


def test_a_users_tree_has_suites_of_its_own(tmp_path: Path):
    (tmp_path / "suite").mkdir()
    written(tmp_path / "suite", SMALL, "own")
    assert load_suite("own", tmp_path).name == "own"
    assert load_suite("coop11", tmp_path).name == "coop11"


def group(**changes: object) -> dict[str, object]:
    return {"groups": [{**SMALL["groups"][0], **changes}]}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"backbone": "rn5"}, "In the suite 'mine': There is no backbone=rn5. Did you mean 'rn50'"),
        ({"colour": 1}, "In the suite 'mine': There is no setting 'colour'"),
        ({"override": []}, r"no setting 'override' \(did you mean 'overrides'"),
        ({"groups": []}, "groups is empty"),
        ({"reference": "rn5"}, "no reference=rn5. Did you mean 'rn50'"),
        ({"overrides": ["search.candidate=3"]}, "In the suite 'mine': .*'search.candidates'"),
        (group(datasets=["icon_kind"]), "names 'icon_kind'.* Did you mean 'icon_kinds'"),
        (group(shots=[0]), "In group 0 of the suite 'mine': shots holds 0"),
        (group(shots=[1, 1]), "names 1 twice"),
        (group(seed=[1]), r"no setting 'seed' \(did you mean 'seeds'"),
        (group(datasets=[]), "datasets is empty"),
    ],
)
def test_what_is_wrong_in_a_suite_is_told_in_a_sentence(
    tmp_path: Path, changes: dict[str, object], words: str
):
    with pytest.raises(InputError, match=words):
        plan(suite_of(tmp_path, **changes))


def test_a_mistake_on_the_command_line_is_not_said_to_be_the_suites(tmp_path: Path):
    with pytest.raises(InputError, match=r"^There is no setting 'search.candidate'"):
        plan(suite_of(tmp_path), ["search.candidate=3"])


def test_a_task_that_two_groups_have_is_refused(tmp_path: Path):
    with pytest.raises(InputError, match="2 groups of the suite 'mine' have the task game_icons-1"):
        plan(suite_of(tmp_path), ["tasks.datasets=[game_icons]"])


def test_a_suite_that_does_not_exist_is_answered_with_the_nearest():
    with pytest.raises(InputError, match=r"no suite=embeded\. Did you mean 'embedded'"):
        load_suite("embeded")


@pytest.mark.parametrize(
    ("text", "words"),
    [("a: [", "is not YAML"), ("- one", "must hold settings"), (None, "cannot be read")],
)
def test_a_file_that_is_no_suite_is_named(tmp_path: Path, text: str | None, words: str):
    file = tmp_path / "mine.yaml"
    if text is not None:
        file.write_text(text)
    with pytest.raises(InputError, match=f"mine.yaml {words}"):
        load_suite(str(file))


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
    return load_reference(written(folder, content))


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
