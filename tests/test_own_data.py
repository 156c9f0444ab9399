"""`data=<location>`: images of one's own need no YAML, and what was assumed is said."""

from __future__ import annotations

import io
import json
import re
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml

from safe_ray import FewShotClassifier
from safe_ray.classifier.samples import batches_of_pixels, samples_of
from safe_ray.compose import load_config
from safe_ray.data.manifest import Manifest, load_manifest
from safe_ray.errors import InputError
from safe_ray.heads.artifact import load_card
from safe_ray.own_data import looks_like_location, name_of
from safe_ray.prediction.heads import find_head
from safe_ray.prediction.images import find_pictures, other_names
from safe_ray.prediction.predictor import Predictor
from tests.conftest import SHAPES, draw_shape


def write_shapes(folder: Path, images: int) -> Path:
    for name in SHAPES:
        (folder / name).mkdir(parents=True)
        for variant in range(images):
            (folder / name / f"{variant}.png").write_bytes(draw_shape(name, variant))
    return folder


@pytest.fixture
def shapes(tmp_path: Path) -> Path:
    return write_shapes(tmp_path / "my shapes", 4)


def test_a_folder_is_the_only_data_set_and_all_of_it_is_used(shapes: Path, tmp_path: Path) -> None:
    config = load_config([f"data={shapes}", f"storage={tmp_path}"])
    assert config.tasks.datasets == ("my_shapes",)
    assert (config.tasks.shots, config.tasks.seeds) == (("all",), (1,))
    assert [task.id for task in config.tasks.tasks()] == ["my_shapes-all-seed1"]
    dataset = config.datasets["my_shapes"]
    assert (dataset.format, dataset.path, dataset.on_change) == ("folder", str(shapes), "redraw")
    assert all(template.count("{}") == 1 for template in dataset.templates)


def test_what_was_assumed_is_said_and_what_was_chosen_is_not(shapes: Path, tmp_path: Path) -> None:
    place = f"storage={tmp_path}"
    (said,) = load_config([f"data={shapes}", place]).datasets["my_shapes"].notes
    for words in (str(shapes), "'folder'", "a drawing of a {}", "backbone=rn50"):
        assert words in said
    chosen = [f"data={shapes}", place, "backbone=rn50", "data.prompts=ensemble"]
    (said,) = load_config(chosen).datasets["my_shapes"].notes
    assert "backbone" not in said
    assert "a photo of a {}" not in said


@pytest.mark.parametrize(
    ("backbone", "prompt"),
    [
        ([], "a drawing of a {}."),
        (["backbone=pictogram"], "a drawing of a {}."),
        (["backbone=rn50"], "a photo of a {}."),
    ],
)
def test_the_usual_prompts_are_for_what_the_backbone_knows(
    shapes: Path, tmp_path: Path, backbone: list[str], prompt: str
) -> None:
    config = load_config([f"data={shapes}", f"storage={tmp_path}", *backbone])
    assert prompt in config.datasets["my_shapes"].templates
    assert any(prompt in note for note in config.datasets["my_shapes"].notes)


def test_other_settings_go_on_top(shapes: Path, tmp_path: Path) -> None:
    config = load_config([f"data={shapes}", f"storage={tmp_path}", "tasks.shots=[1,2]"])
    assert config.tasks.shots == (1, 2)
    assert config.tasks.datasets == ("my_shapes",)


def test_a_table_is_found_out_by_looking(shapes: Path, tmp_path: Path) -> None:
    rows = [
        {"path": str(file), "label": file.parent.name} for file in sorted(shapes.glob("*/*.png"))
    ]
    file = tmp_path / "labels.parquet"
    pq.write_table(pa.Table.from_pylist(rows), file)
    config = load_config([f"data={file}", f"storage={tmp_path}"])
    assert config.datasets["labels"].format == "table"


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["data=/no/such/folder"], "There is no file or folder /no/such/folder"),
        (["data=./a", "data=./b"], "names 2 locations"),
        (["data={shapes}", "tasks.datasets=[emoji_kinds]"], "tasks.datasets does not name"),
        (["data=defualt"], "There is no data=defualt"),
    ],
)
def test_a_mistake_gets_one_sentence(
    shapes: Path, tmp_path: Path, overrides: list[str], words: str
) -> None:
    filled = [override.replace("{shapes}", str(shapes)) for override in overrides]
    with pytest.raises(InputError, match=words):
        load_config([*filled, f"storage={tmp_path}"])


def read(location: Path, *settings: str) -> Manifest:
    """Read the images as a command would that has these arguments."""
    config = load_config([f"data={location}", f"storage={location.parent}", *settings])
    (spec,) = config.dataset_specs().values()
    return load_manifest(spec, config.data.root, config.data.prompts)


def write_table(shapes: Path, head: str, numbered: bool = False) -> Path:
    """Write a CSV beside the images, a row each; labels are names or numbers."""
    file = shapes / "list.csv"
    rows = [
        f"{image.relative_to(shapes)},{list(SHAPES).index(name) if numbered else name}"
        for name in SHAPES
        for image in sorted((shapes / name).iterdir())
    ]
    file.write_text("\n".join([head, *rows]) + "\n")
    return file


def write_tar(folder: Path) -> Path:
    """Write samples whose labels are under a key that no reader guesses."""
    file = folder / "shapes.tar"
    with tarfile.open(file, "w") as tar:
        for number, name in enumerate([*SHAPES, *SHAPES]):
            label = json.dumps({"form": name}).encode()
            for suffix, content in (("png", draw_shape(name, number)), ("json", label)):
                member = tarfile.TarInfo(f"{number:03d}.{suffix}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    return file


def write_images(shapes: Path, image: str, label: str) -> Path:
    rows = [
        {image: file.read_bytes(), label: file.parent.name}
        for file in sorted(shapes.glob("*/*.png"))
    ]
    file = shapes.parent / "images.parquet"
    pq.write_table(pa.Table.from_pylist(rows), file)
    return file


REMEDIES = [
    (lambda f: write_table(f, "bild,label"), "options.path_column", "bild"),
    (lambda f: write_table(f, "path,art der form"), "options.label_column", "art der form"),
    (lambda f: write_images(f, "foto", "label"), "options.image_column", "foto"),
    (lambda f: write_images(f, "image", "art"), "options.label_column", "art"),
    (lambda f: write_tar(f), "options.label_key", "form"),
]


@pytest.mark.parametrize(("write", "setting", "value"), REMEDIES)
def test_an_option_that_a_message_names_works_when_pasted(
    shapes: Path, write: Callable[[Path], Path], setting: str, value: str
) -> None:
    location = write(shapes)
    with pytest.raises(InputError, match=re.escape(setting)):
        read(location)
    manifest = read(location, f"{setting}={value}")
    assert sorted(manifest.classes) == sorted(SHAPES)


def test_the_level_of_nested_folders_is_chosen_as_the_message_says(tmp_path: Path) -> None:
    folder = tmp_path / "lab"
    for outer in ("monday", "tuesday"):
        write_shapes(folder / outer, 2)
    with pytest.raises(InputError, match=r"options\.class_level=1.*options\.class_level=2"):
        read(folder)
    assert read(folder, "options.class_level=1").classes == ("monday", "tuesday")
    assert sorted(read(folder, "options.class_level=2").classes) == sorted(SHAPES)


NAMES = [f"a {name}" for name in SHAPES]


@pytest.mark.parametrize("key", ["classes", "options.classes"])
def test_numbers_get_names_as_the_note_says(shapes: Path, key: str) -> None:
    file = write_table(shapes, "path,label", numbered=True)
    assert any("options.classes" in note for note in read(file).notes)
    listed = read(file, f"{key}=[{','.join(NAMES)}]")
    mapped = read(file, f"{key}={{{','.join(f'{n}: {name}' for n, name in enumerate(NAMES))}}}")
    assert listed.classes == mapped.classes == tuple(NAMES)
    for split in listed.tables:
        assert listed.split(split).equals(mapped.split(split))
    assert not any("options.classes" in note for note in listed.notes)


@pytest.mark.parametrize("suffix", ["json", "yaml"])
def test_folders_get_names_from_a_file(shapes: Path, tmp_path: Path, suffix: str) -> None:
    file = tmp_path / f"names.{suffix}"
    names = dict(zip(SHAPES, NAMES, strict=True))
    file.write_text(json.dumps(names) if suffix == "json" else yaml.safe_dump(names))
    manifest = read(shapes, f"classes={file}")
    assert sorted(manifest.classes) == sorted(NAMES)
    table = manifest.split("train")
    for path, label in zip(table["path"].to_pylist(), table["label"].to_pylist(), strict=True):
        assert manifest.classes[label] == f"a {path.partition('/')[0]}"


def test_better_words_for_the_class_folders_are_found_beside_them(shapes: Path) -> None:
    words = {name: f"a {name}" for name in SHAPES} | {"red circle": ["red disc", "scarlet circle"]}
    (shapes / "classes.yaml").write_text(yaml.safe_dump(words))
    config = load_config([f"data={shapes}", f"storage={shapes.parent}"])
    (said,) = config.datasets["my_shapes"].notes
    assert f"the names of the classes are those in {shapes}/classes.yaml" in said
    manifest = read(shapes, "templates=one {}.")
    label = manifest.classes.index("red disc")
    assert manifest.prompts[label] == ["one red disc.", "one scarlet circle."]
    assert manifest.prompts[manifest.classes.index("a black cross")] == ["one a black cross."]
    assert manifest.called[label] == "red circle"
    assert not any("Left out" in note for note in manifest.notes)


def test_a_file_that_is_named_goes_before_the_one_that_is_found(
    shapes: Path, tmp_path: Path
) -> None:
    (shapes / "classes.yaml").write_text("red circle: wrong\n")
    file = tmp_path / "names.json"
    file.write_text(json.dumps(dict(zip(SHAPES, NAMES, strict=True))))
    assert set(read(shapes, f"classes={file}").classes) == set(NAMES)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("red circle: [ring, disc]\n", "has the class 'black cross', which options.classes"),
        ("- [\n", "classes.yaml cannot be read"),
        ("red circle: 3\n", "lists the class 3, which YAML does not read as text"),
        ("red circle: []\n", "has a class with an empty list of names"),
    ],
)
def test_a_mistake_in_the_words_is_named(shapes: Path, content: str, said: str) -> None:
    (shapes / "classes.yaml").write_text(content)
    with pytest.raises(InputError, match=said):
        read(shapes)


def test_two_classes_of_one_name_are_refused(shapes: Path) -> None:
    (shapes / "classes.yaml").write_text(yaml.safe_dump({n: [n, "form"] for n in SHAPES}))
    with pytest.raises(InputError, match="has the name 'form' for two classes"):
        read(shapes)


def test_folders_that_are_called_by_codes_bring_a_proposal_that_works(shapes: Path) -> None:
    for number, name in enumerate(SHAPES):
        (shapes / name).rename(shapes / f"c{number}")
    (proposal,) = [note for note in read(shapes).notes if "look like codes" in note]
    assert f"write a line for each class into {shapes}/classes.yaml (`c0: a name`" in proposal
    lines = "".join(f"c{number}: {name}\n" for number, name in enumerate(SHAPES))
    (shapes / "classes.yaml").write_text(lines)
    manifest = read(shapes)
    assert manifest.classes == tuple(SHAPES)
    assert not any("look like codes" in note for note in manifest.notes)


def test_a_file_of_lines_has_the_names_in_the_order_of_the_labels(
    shapes: Path, tmp_path: Path
) -> None:
    (tmp_path / "names.txt").write_text("\n".join(NAMES) + "\n")
    table = write_table(shapes, "path,label", numbered=True)
    assert read(table, f"classes={tmp_path}/names.txt").classes == tuple(NAMES)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (["classes={cat: Cat}"], "has the class 'black cross', which options.classes"),
        (["classes=/no/such/names.txt"], "classes=/no/such/names.txt cannot be read"),
        (["classes=[a,b"], "lists are written"),
        (["classes=3"], "give a list of class names"),
        (["classes"], "'classes' has no value: write classes=<value>"),
        (["templates=a photo"], "must have exactly one '{}'"),
        (["options.test_shares=0.5"], "unknown option 'test_shares'.*Did you mean 'test_share'"),
        (["format=foldr"], "unknown format 'foldr'.*Did you mean 'folder'"),
    ],
)
def test_a_wrong_setting_of_ones_own_images_is_named(
    shapes: Path, settings: list[str], said: str
) -> None:
    with pytest.raises(InputError, match=re.escape(said).replace(r"\.\*", ".*")):
        read(shapes, *settings)


def test_templates_and_the_share_of_the_test_split_are_chosen(shapes: Path) -> None:
    one = read(shapes, "templates=a drawing of a {}.", "options.test_share=0.5")
    assert one.templates == ("a drawing of a {}.",)
    assert one.split("test").num_rows == one.split("train").num_rows
    two = read(shapes, "templates=['a {}.','the {}.']", "data.prompts=single")
    assert two.templates == ("a {}.", "the {}.")


def test_what_was_chosen_is_not_said_to_be_assumed(shapes: Path, tmp_path: Path) -> None:
    chosen = [f"data={shapes}", f"storage={tmp_path}", "backbone=rn50", "templates=a {}."]
    (said,) = load_config(chosen).datasets["my_shapes"].notes
    assert "prompts" not in said
    assert load_config([*chosen, "format=folder"]).datasets["my_shapes"].notes == ()


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["options.path_column=bild"], "options.path_column is a setting of images of your own"),
        (["classes=[a,b]"], "classes is a setting of images of your own: add data=<location>"),
        (["tasks=own"], "tasks=own needs images of your own.*data=<location>"),
    ],
)
def test_settings_of_ones_own_images_need_images(overrides: list[str], said: str) -> None:
    with pytest.raises(InputError, match=said):
        load_config(overrides)


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("/photos/my pets/", "my_pets"),
        ("/photos/birds.parquet", "birds"),
        ("s3://bucket/some/data-{0..3}.tar", "data-_0..3"),
        ("/photos/日本", "own"),
    ],
)
def test_the_name_is_safe_as_a_folders(path: str, name: str) -> None:
    assert name_of(path) == name


@pytest.mark.parametrize(
    ("text", "expected"),
    [("s3://bucket/x", True), ("~/photos", True), ("./x", True), ("default", False), ("", False)],
)
def test_a_location_is_told_from_a_choice(text: str, expected: bool) -> None:
    assert looks_like_location(text) is expected


@pytest.mark.slow
def test_a_small_folder_is_cross_validated_from_end_to_end(
    shapes: Path, tmp_path: Path, tiny_config_dir: Path
) -> None:
    words = {name: name for name in SHAPES} | {"red circle": ["red disc", "scarlet circle"]}
    (shapes / "classes.yaml").write_text(yaml.safe_dump(words))
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "safe_ray.tune",
            "--config-dir",
            str(tiny_config_dir),
            f"data={shapes}",
            "backbone=tiny",
            f"storage={tmp_path}",
            "sweep=mine",
            "features.views=1",
            "search.candidates=2",
            "search.epochs=3",
            "search.cautious=true",
            "cluster.num_cpus=2",
        ],
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    for words in (
        "5 classes, named after the folders",
        "There was no test split: 30% of each class, 5 images in all, were held out",
        "cross-validation, 4 folds of the 15 support images",
    ):
        assert words in done.stderr
    (entry,) = json.loads((tmp_path / "outputs" / "mine" / "summary.json").read_text())
    assert (entry["dataset"], entry["shots"]) == ("my_shapes", "all")
    assert re.search(r"my_shapes +all +one seed +cross.*, cautious", done.stdout)
    assert (tmp_path / "outputs" / "mine" / "tasks" / "my_shapes-all-seed1").is_dir()
    # Fifteen images hardly show a gain; where they do, the winner has stayed.
    if not entry["validation"]["gain_shown"]:
        assert entry["best"]["alpha"] == 0.0
        assert entry["test"]["safe"] == entry["test"]["zero_shot"]
        assert "search.cautious=true" in done.stderr
    # Folders go on to be called as they are, whatever their classes are called.
    card = load_card(find_head(str(tmp_path / "outputs" / "mine")))
    pictures = list(find_pictures([str(shapes)], card["class_names"], (), other_names(card)))
    assert {picture.label for picture in pictures} == {"red disc", *SHAPES} - {"red circle"}
    assert Predictor.load(find_head(str(tmp_path / "outputs" / "mine")), torch.device("cpu"))
    assert entry["protocol"]["selection"] == "cross"
    assert entry["protocol"]["validation_samples"] == 15
    assert entry["test_samples"] == 5
    frozen = pq.read_table(next((tmp_path / "features" / "manifests").glob("my_shapes-*.parquet")))
    assert sorted(frozen.column("split").to_pylist()) == ["test"] * 5 + ["train"] * 15
    split = zip(*(frozen.column(name).to_pylist() for name in ("path", "split")), strict=True)
    check_python_gives_the_same(
        tmp_path, shapes, [path for path, name in split if name == "train"], tiny_config_dir
    )


def check_python_gives_the_same(
    storage: Path, shapes: Path, paths: list[str], config_dir: Path
) -> None:
    """Fit a classifier to a sweep's training images, and compare the heads."""
    # A folder of the same name, for the sweep's random numbers are drawn by the name of the task.
    folder = storage / "again" / shapes.name
    for path in paths:
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(shapes / path, folder / path)
    shutil.copy(shapes / "classes.yaml", folder)
    model = FewShotClassifier(
        "tiny",
        candidates=2,
        settings={"features.views": 1, "search.epochs": 3, "search.cautious": True},
        config_dir=config_dir,
        progress=False,
        device="cpu",
    ).fit(folder)
    theirs, ours = find_head(str(storage / "outputs" / "mine")), model.save(storage / "python")
    there, here = load_card(theirs), load_card(ours)
    assert here.keys() == there.keys()
    chosen = {"alpha", "knobs", "hyper_parameters", "metrics", "calibration", "weights"}
    assert {k: v for k, v in here.items() if k not in chosen} == {
        k: v for k, v in there.items() if k not in chosen
    }
    assert here["metrics"].keys() == there["metrics"].keys()
    untouched = [Predictor.load(head, alpha=0.0) for head in (theirs, ours)]
    [pixels] = batches_of_pixels(samples_of(folder), untouched[0].preprocessing, len(paths))
    # The sweep has kept its classifier, and the other's is computed here.
    torch.testing.assert_close(*(one.logits(pixels) for one in untouched), atol=1e-4, rtol=0)
