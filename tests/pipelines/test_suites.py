from __future__ import annotations

import json
from pathlib import Path

import pytest

from pipelines.suites import Suite, load_suite, plan
from safe_ray.compose import ConfigTree, load_dataset, packaged_tree
from safe_ray.data.manifest import load_manifest
from safe_ray.errors import InputError

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


def test_each_group_is_a_sweep_of_its_own_in_one_experiment(tmp_path: Path):
    planned = plan(suite_of(tmp_path), ["sweep=first", f"storage={tmp_path}"])
    assert [sweep.sweep for sweep in planned.sweeps] == ["first-0", "first-1"]
    assert {sweep.experiment for sweep in planned.sweeps} == {"safe_ray"}
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
