"""The configuration: what is refused in which words, and what makes two sweeps the same."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from safe_ray.compose import ConfigTree, load_config, load_dataset, packaged_tree
from safe_ray.config import (
    FloatRange,
    SweepConfig,
    difference,
    essentials,
    groups,
    knobs,
    validate,
)
from safe_ray.errors import InputError
from safe_ray.specs import NodeShape, Task


@pytest.fixture
def load(tiny_config_dir: Path, tmp_path: Path):
    def load(*overrides: str) -> SweepConfig:
        base = ("backbone=tiny", "tasks.datasets=[shapes]", f"storage={tmp_path}")
        return load_config((*base, *overrides), tiny_config_dir)

    return load


def refusal(load, *overrides: str) -> str:
    with pytest.raises(InputError) as caught:
        load(*overrides)
    return str(caught.value)


def test_the_packaged_defaults_name_every_knob_and_no_other():
    tree = packaged_tree()
    primary = yaml.safe_load((tree / "tune.yaml").read_text())
    defaults = {
        f"{group}.{key}"
        for entry in primary["defaults"]
        if isinstance(entry, dict)
        for group, choice in entry.items()
        for key in yaml.safe_load((tree / group / f"{choice}.yaml").read_text())
    }
    top_level = {key for key in primary if key != "defaults"}
    assert defaults | top_level == {knob.path for knob in knobs()}


@pytest.mark.parametrize("group", sorted(groups()))
def test_every_packaged_choice_sets_what_its_file_says(group: str, tmp_path: Path):
    files = sorted((packaged_tree() / group).glob("*.yaml"))
    assert files
    for file in files:
        data = "data=pkg://safe_ray/embedded/pictogram_foods.parquet"
        own = [data] if (group, file.stem) == ("tasks", "own") else []
        config = load_config([*own, f"{group}={file.stem}", f"storage={tmp_path}"])
        chosen = config.to_dict()[group]
        stated = yaml.safe_load(file.read_text())
        assert stated
        for knob, value in stated.items():
            if value == "???" or "${" in str(value):
                continue
            # A range has more fields than its file gives.
            whole = {**chosen[knob], **value} if isinstance(value, dict) else value
            assert chosen[knob] == whole, f"{file}: {knob}"


def test_every_packaged_data_set_is_valid():
    tree = ConfigTree.of()
    for name in tree.choices("dataset"):
        assert load_dataset(tree, name).name == name


def test_every_knob_has_a_line_of_meaning():
    assert all(knob.meaning.endswith(".") and knob.type for knob in knobs())


def test_the_command_line_wins_over_the_files(load):
    config = load("search.candidates=64", "search.lr=1e-4", "search.epochs.high=50")
    assert config.search.candidates == 64
    assert config.search.lr == 1e-4
    assert config.search.epochs.high == 50
    assert config.search.weight_decay.log


def test_batches_and_parts_of_the_trunk_are_planned_or_given(load):
    planned = load().features
    assert (planned.batch_size, planned.rows_per_file) == ("auto", "auto")
    given = load("features.batch_size=8", "features.rows_per_file=16").features
    assert (given.batch_size, given.rows_per_file) == (8, 16)
    assert "auto" in refusal(load, "features.batch_size=0")


def test_a_fixed_number_can_become_a_range_and_back(load):
    assert load("search.alpha=0.5").search.alpha == 0.5
    searched = load("search.lr={low: 1e-4, high: 1e-3}").search.lr
    assert searched == FloatRange(low=1e-4, high=1e-3, log=True)


def test_a_tree_of_ones_own_goes_before_the_packaged_one(tmp_path: Path, tiny_config_dir: Path):
    file = tmp_path / "search" / "default.yaml"
    file.parent.mkdir()
    packaged = yaml.safe_load((packaged_tree() / "search" / "default.yaml").read_text())
    file.write_text(json.dumps({**packaged, "candidates": 7}))
    for group, name in (("backbone", "tiny"), ("dataset", "shapes")):
        copy = tmp_path / group / f"{name}.yaml"
        copy.parent.mkdir()
        copy.write_text((tiny_config_dir / group / f"{name}.yaml").read_text())
    config = load_config(["backbone=tiny", "tasks.datasets=[shapes]"], tmp_path)
    assert config.search.candidates == 7
    assert config.training.workers == 1


def test_what_is_written_lies_in_the_storage_folder(load, tmp_path: Path):
    config = load("sweep=mine")
    assert config.outputs == tmp_path / "outputs" / "mine"
    assert config.features.store == tmp_path / "features"
    assert load("sweep=mine", "tracking.experiment=ours").experiment == "ours"


def test_sweeps_share_an_experiment_that_the_environment_may_name(
    load, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.delenv("MLFLOW_EXPERIMENT_NAME", raising=False)
    assert {load(f"sweep={name}").experiment for name in ("mine", "yours")} == {"safe_ray"}
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "theirs")
    assert load("sweep=mine").experiment == "theirs"
    assert load("sweep=mine", "tracking.experiment=ours").experiment == "ours"


def test_the_storage_folder_may_come_from_the_environment(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, tiny_config_dir: Path
):
    monkeypatch.setenv("SAFE_RAY_STORAGE", str(tmp_path / "shared"))
    monkeypatch.setenv("SAFE_RAY_DATA", str(tmp_path / "images"))
    config = load_config(["backbone=tiny", "tasks.datasets=[shapes]"], tiny_config_dir)
    assert config.storage == tmp_path / "shared"
    assert config.data.root == tmp_path / "images"


def test_relative_folders_start_at_the_working_directory(
    load, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    monkeypatch.chdir(tmp_path)
    assert load("storage=out").storage == tmp_path / "out"
    assert load("storage=~/out").storage == Path.home() / "out"


@pytest.mark.parametrize("uri", ["s3://bucket/safe", "gs://bucket", "file:///shared/safe"])
@pytest.mark.parametrize("setting", ["storage", "features.store", "data.root"])
def test_a_folder_at_a_uri_is_refused(load, setting: str, uri: str):
    said = refusal(load, f"{setting}={uri}")
    assert said.startswith(f"{setting}")
    assert uri in said
    assert "such as a mounted share" in said
    assert "\n" not in said


def test_a_storage_at_a_uri_is_refused_from_the_environment_too(
    load, monkeypatch: pytest.MonkeyPatch, tiny_config_dir: Path
):
    monkeypatch.setenv("SAFE_RAY_STORAGE", "s3://bucket/safe")
    with pytest.raises(InputError, match=r"^storage=s3://bucket/safe is not a folder"):
        load_config(["backbone=tiny", "tasks.datasets=[shapes]"], tiny_config_dir)


def test_a_ceiling_is_a_list_of_shapes_with_sizes_as_people_write_them(load):
    config = load(
        "cluster.ceiling=[{nodes: 4, cpus: 8, gpus: 1, memory: 64GiB}, {nodes: 2, cpus: 3.5}]"
    )
    assert [shape.spec() for shape in config.cluster.ceiling] == [
        NodeShape(4, 8.0, 1.0, 64 * 2**30),
        NodeShape(2, 3.5),
    ]
    assert load().cluster.ceiling == ()


@pytest.mark.parametrize(
    ("written", "size"),
    [("512Mi", 2**29), ("512MiB", 2**29), ("2G", 2 * 10**9), ("1.5GB", 15 * 10**8), (2**30, 2**30)],
)
def test_memory_is_read_as_kubernetes_reads_it(load, written: object, size: int):
    config = load(f"cluster.ceiling=[{{nodes: 1, cpus: 1, memory: {written}}}]")
    assert config.cluster.ceiling[0].memory == size


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("4", "cluster.ceiling is 4, and must be a list of {nodes, cpus, gpus, memory}."),
        ("[{nodes: 4}]", "cluster.ceiling[0].cpus is missing: it must be a number above 0."),
        ("[{nodes: 0, cpus: 8}]", "cluster.ceiling[0].nodes is 0, and must be an integer of at"),
        ("[{nodes: 1, cpus: 8, cpu: 8}]", "cluster.ceiling[0] has no setting 'cpu' (did you mean"),
        ("[{nodes: 1, cpus: 8, memory: lots}]", "cluster.ceiling[0].memory is 'lots', and must be"),
    ],
)
def test_a_ceiling_that_is_none_is_refused_in_its_place(load, value: str, said: str):
    assert refusal(load, f"cluster.ceiling={value}").startswith(said)


def written_to(config_dir: Path, *overrides: str) -> tuple[Path, Path]:
    config = load_config(["backbone=tiny", "tasks.datasets=[shapes]", *overrides], config_dir)
    return config.storage, config.features.store


def test_without_a_word_everything_is_written_to_the_working_directory(
    tiny_config_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.delenv("SAFE_RAY_STORAGE", raising=False)
    monkeypatch.chdir(tmp_path)
    assert written_to(tiny_config_dir)[0] == tmp_path


def test_a_submitted_job_writes_to_the_home_folder_unless_it_is_told_another(
    tiny_config_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    monkeypatch.delenv("SAFE_RAY_STORAGE", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    home = tmp_path / "safe-ray-results"
    assert written_to(tiny_config_dir) == (home, home / "features")
    monkeypatch.setenv("SAFE_RAY_STORAGE", str(tmp_path / "shared"))
    assert written_to(tiny_config_dir)[0] == tmp_path / "shared"
    assert written_to(tiny_config_dir, f"storage={tmp_path}/named")[0] == tmp_path / "named"


def test_an_unnamed_sweep_is_named_after_its_backbone_and_the_time(load):
    assert load().sweep.startswith("tiny-20")


def test_a_single_value_is_a_list_of_one(load):
    config = load("tasks.datasets=shapes", "tasks.shots=4", "tasks.seeds=2")
    assert config.tasks.tasks() == [Task("shapes", 4, 2)]


def test_tasks_of_different_data_sets_are_neighbours():
    tasks = validate_tasks(["a", "b"], shots=[1, 2], seeds=[1])
    assert [task.id for task in tasks] == [
        "a-1shot-seed1",
        "b-1shot-seed1",
        "a-2shot-seed1",
        "b-2shot-seed1",
    ]


def validate_tasks(datasets: list[str], shots: list[int], seeds: list[int]) -> list[Task]:
    from safe_ray.config import TasksConfig

    return TasksConfig.model_validate(
        {"datasets": datasets, "shots": shots, "seeds": seeds}
    ).tasks()


def test_the_backbone_travels_with_absolute_paths(load, monkeypatch, tmp_path: Path):
    monkeypatch.chdir(tmp_path)
    assert load("backbone.pretrained=openai").backbone.spec().pretrained == "openai"
    local = load("backbone.pretrained=weights/my.pt").backbone.spec()
    assert local.pretrained == str(tmp_path / "weights" / "my.pt")
    packaged = load("backbone.pretrained=pkg://safe_ray/x.safetensors").backbone.spec()
    assert packaged.pretrained == "pkg://safe_ray/x.safetensors"
    assert load("backbone.pretrained=null").backbone.spec().pretrained is None


def test_the_data_sets_of_the_tasks_are_read(load, tiny_dataset):
    assert load().dataset_specs() == {"shapes": tiny_dataset}


def test_text_with_special_characters_needs_no_quotes(load):
    uri = "postgresql://me:secret@db.example:5432/mlflow?sslmode=require"
    assert load(f"tracking.uri={uri}").tracking.uri == uri


def test_the_configuration_survives_json(load):
    config = load("sweep=mine")
    assert validate(json.loads(json.dumps(config.to_dict()))) == config


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("backbone=rn5", ["backbone=rn5", "'rn50'"]),
        ("backbone=null", ["backbone=null", "rn101"]),
        ("bakbone=rn50", ["'bakbone'", "'backbone'"]),
        ("search.candidate=3", ["'search.candidate'", "'search.candidates'"]),
        ("+search.candidate=3", ["'search.candidate'", "'search.candidates'"]),
        ("~search.lr", ["~search.lr", "cannot be removed"]),
        ("search", ["'search' has no value", "search.<knob>=<value>"]),
        ("search.lr", ["'search.lr' has no value: write search.lr=<value>"]),
        ("serch", ["'serch' is not an override", "group.knob=value", "'search'"]),
        ("tasks.shots=[1,2", ["tasks.shots=[1,2", "lists are written [a,b]"]),
        ("tasks.shots=1,2", ["tasks.shots=[1,2]"]),
        ("dataset=shapes", ["tasks.datasets"]),
        ("hydra.run.dir=x", ["Hydra"]),
        ("tasks.datasets=[shape]", ["'shape'", "dataset/shape.yaml", "'shapes'"]),
        ("tasks.datasets=[]", ["tasks.datasets is empty"]),
        ("tasks.datasets=[shapes,shapes]", ["'shapes' twice"]),
        ("tasks.shots=[0]", ["tasks.shots holds 0", "at least 1"]),
        ("tasks.shots=[1.5]", ["tasks.shots holds 1.5", "integers of at least 1 or all"]),
        ("tasks.shots=most", ['tasks.shots holds "most"', "integers of at least 1 or all"]),
        ("tasks.shots=[4,4]", ["tasks.shots names 4 twice"]),
        ("tasks.shots=[]", ["tasks.shots is empty"]),
        ("tasks.seeds=[-1]", ["tasks.seeds holds -1", "at least 0"]),
        ("tasks.seeds=[true]", ["tasks.seeds holds true", "integers"]),
        ("training.workers=0", ["training.workers is 0", "at least 1"]),
        ("training.parameters=['a b']", ["training.parameters", "a b", "projection"]),
        ("training.warmup=1", ["training.warmup is 1", "below 1"]),
        ("search.bank=lots", ['search.bank is "lots"', "auto"]),
        ("search.lr=0", ["search.lr reaches 0", "above 0"]),
        ("search.lr=nan", ["search.lr", "number"]),
        ("search.lr={low: 1, high: 0.1}", ["search.lr", "low must be below high"]),
        ("search.lr={low: 0, high: 0.1}", ["search.lr", "logarithmic"]),
        ("search.lr={lo: 1, high: 2}", ["search.lr", "{low, high, log}"]),
        ("search.epochs=0.5", ["search.epochs is 0.5", "integer"]),
        ("search.alpha={low: 0, high: 2}", ["search.alpha reaches 2", "between 0 and 1"]),
        (
            "search.alpha={low: 0.1, high: 1, log: true}",
            ["search.alpha has log: true", "even grid"],
        ),
        ("search.alpha={low: 0, high: 1, log: true}", ["search.alpha has log: true", "Leave log"]),
        ("search.alpha.log=true", ["search.alpha has log: true", "Leave log"]),
        ("search.alpha={low: 0.501, high: 0.509}", ["search.alpha from 0.501", "alpha_points"]),
        ("evaluation.metric=macro", ["evaluation.metric", "accuracy or mean_per_class"]),
        ("search.alpha=[0,1]", ["search.alpha", "{low, high, log}"]),
        ("search.validation=test", ["search.validation", "auto, coop, cross, full or held_out"]),
        ("features.precision=fp8", ["features.precision", "bf16"]),
        ("sweep=a/b", ["sweep", "'a/b'", "folder"]),
        ("backbone.model_config=[a]", ["backbone.model_config"]),
    ],
)
def test_a_mistake_gets_one_sentence_with_the_remedy(load, override: str, words: list[str]):
    said = refusal(load, override)
    assert "\n" not in said
    for word in words:
        assert word in said


def test_an_unknown_data_set_without_a_near_name_lists_those_there_are(load):
    assert "shapes" in refusal(load, "tasks.datasets=[zzzzzz]")


def test_a_folder_of_configuration_must_exist(tmp_path: Path):
    with pytest.raises(InputError, match="not a folder"):
        load_config([], tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("content", "word"),
    [
        ("path: x", "format is missing"),
        ("format: parquet\npath: x\ntemplate: a", "'template' (did you mean 'templates'"),
        ("format: [", "cannot be read"),
        ("- 1", "must hold settings"),
        ("", "format is missing"),
    ],
)
def test_a_bad_data_set_file_is_named(tmp_path: Path, content: str, word: str):
    file = tmp_path / "dataset" / "mine.yaml"
    file.parent.mkdir()
    file.write_text(content)
    with pytest.raises(InputError) as caught:
        load_dataset(ConfigTree.of(tmp_path), "mine")
    assert word in str(caught.value)
    assert "mine" in str(caught.value)


def test_a_bad_file_in_ones_own_tree_is_one_sentence(tmp_path: Path):
    file = tmp_path / "search" / "default.yaml"
    file.parent.mkdir()
    file.write_text("candidates: [3")
    with pytest.raises(InputError, match=r"search/default\.yaml cannot be read") as caught:
        load_config([], tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "override",
    [
        "storage=/elsewhere",
        "sweep=other",
        "cluster.num_cpus=1",
        "training.workers=2",
        "search.concurrent_trials=3",
        "features.batch_size=1",
        "tracking.uri=http://tracker:5000",
        "tracking.experiment=other",
        "tracking.heads=none",
        "tracking.register=false",
        "tracking.models=none",
        "tracking.system=false",
        "data.skip_bad=true",
        "search.candidates=64",
        "evaluation.targets=[some_shapes]",
    ],
)
def test_where_and_how_fast_a_sweep_runs_does_not_make_it_another(load, override: str):
    assert difference(essentials(load()), essentials(load(override))) is None


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("tasks.seeds=[3,4]", "tasks.seeds was"),
        ("search.lr=0.5", "search.lr"),
        ("evaluation.metric=mean_per_class", "evaluation.metric was"),
        ("training.batch_size=7", "training.batch_size was 32, is 7"),
        ("backbone.seed=5", "backbone.seed was 0, is 5"),
    ],
)
def test_what_a_result_depends_on_makes_another_sweep(load, override: str, said: str):
    before, after = load(), load(override)
    assert said in (difference(essentials(before), essentials(after)) or "")


def test_any_model_of_open_clip_needs_no_file(tmp_path: Path):
    config = load_config(
        ["backbone.model=ViT-B-32", "backbone.pretrained=openai", f"storage={tmp_path}"]
    )
    spec = config.backbone.spec()
    assert (spec.name, spec.model, spec.pretrained) == ("ViT-B-32", "ViT-B-32", "openai")
    assert spec.model_config is None
    named = load_config(
        ["backbone.model=RN50", "backbone.pretrained=null", "backbone.name=mine"]
    ).backbone
    assert (named.name, named.pretrained, named.architecture_file) == ("mine", None, None)


def test_a_model_without_weights_is_refused():
    with pytest.raises(InputError, match=r"backbone\.model=ViT-B-32 has no weights yet"):
        load_config(["backbone.model=ViT-B-32"])


def test_a_model_in_a_chosen_file_is_changed_alone():
    backbone = load_config(["backbone=rn50", "backbone.model=RN50"]).backbone
    assert (backbone.name, backbone.model, backbone.pretrained) == ("rn50", "RN50", "openai")


def test_the_parts_of_a_pooling_are_any_names_until_the_backbone_is_known():
    config = load_config(["training.parameters=[attention,projection]"])
    assert config.training.parameters == ("attention", "projection")
