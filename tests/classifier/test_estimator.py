"""One task in Python: fit, predict, score, save, load; the same heads as a sweep's."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from safe_ray import FewShotClassifier
from safe_ray.classifier.estimator import NotFittedError
from safe_ray.classifier.problem import override
from safe_ray.compose import load_config
from safe_ray.errors import InputError
from tests.classifier.shapes import QUICK, drawings, quick, write_folder
from tests.conftest import SHAPES

NAMES = sorted(SHAPES)


@pytest.fixture(scope="module")
def fitted(tiny_config_dir: Path) -> FewShotClassifier:
    return quick(tiny_config_dir).fit(*drawings(6), shots=3)


def test_labels_come_back_as_they_were_given(fitted: FewShotClassifier) -> None:
    images, labels = drawings(2, first=6)
    assert fitted.classes_.tolist() == NAMES
    assert fitted.class_names_ == tuple(NAMES)
    predicted = fitted.predict(images)
    assert isinstance(predicted, np.ndarray)
    assert set(predicted.tolist()) <= set(labels)
    probabilities = fitted.predict_proba(images)
    assert probabilities.shape == (10, 5)
    assert probabilities.dtype == np.float32
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, atol=1e-5)
    assert (fitted.classes_[probabilities.argmax(axis=1)] == predicted).all()
    assert fitted.score(images, labels) == (predicted == np.array(labels)).mean()


def test_one_image_gives_one_label_and_a_folder_those_of_its_images(
    fitted: FewShotClassifier, tmp_path: Path
) -> None:
    folder = write_folder(tmp_path / "shapes", 2, first=6)
    images, labels = drawings(2, first=6)
    assert fitted.predict(images[0]).shape == (1,)
    by_path = dict(zip(sorted(folder.rglob("*.png")), fitted.predict(folder), strict=True))
    order = [folder / label / f"{6 + place % 2:02d}.png" for place, label in enumerate(labels)]
    assert [by_path[file] for file in order] == fitted.predict(images).tolist()
    # Without labels, the folders are the labels.
    assert fitted.score(folder) == fitted.score(images, labels)
    assert fitted.predict([]).shape == (0,)


def test_what_was_chosen_can_be_looked_at(fitted: FewShotClassifier) -> None:
    assert {"lr", "weight_decay", "epochs", "alpha"} <= set(fitted.best_params_)
    assert fitted.card_["shots"] == 3
    assert fitted.card_["calibration"]["temperature"] > 0
    assert fitted.validation_ is not None
    assert 0 <= fitted.validation_.accuracy <= 1
    # Three of six train; the others, four a class at most, decide.
    assert fitted.card_["metrics"]["validation_samples"] == 15


def test_a_head_that_was_saved_says_the_same(fitted: FewShotClassifier, tmp_path: Path) -> None:
    images, _ = drawings(2, first=6)
    place = fitted.save(tmp_path / "head")
    assert sorted(file.name for file in place.iterdir()) == ["head.json", "head.safetensors"]
    again = FewShotClassifier.load(place, device="cpu")
    np.testing.assert_array_equal(again.predict_proba(images), fitted.predict_proba(images))
    assert again.classes_.tolist() == fitted.classes_.tolist()
    assert again.best_params_ == fitted.best_params_
    assert again.validation_ is None
    assert again.save(tmp_path / "again").is_dir()
    assert (tmp_path / "again" / "head.json").read_text() == (place / "head.json").read_text()


@pytest.mark.timeout(200)
def test_the_command_line_reads_a_head_that_was_saved(
    fitted: FewShotClassifier, tmp_path: Path
) -> None:
    fitted.save(tmp_path / "head")
    write_folder(tmp_path / "shapes", 1, first=6)
    done = subprocess.run(
        [sys.executable, "-m", "safe_ray.predict", "head", "shapes", "--out", "out.jsonl"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    files = [tmp_path / row["path"] for row in rows]
    assert [row["class"] for row in rows] == fitted.predict(files).tolist()


def test_numbers_have_words_in_the_prompts_and_travel_with_the_head(
    tiny_config_dir: Path, tmp_path: Path
) -> None:
    images, labels = drawings(3)
    numbers = np.array([10 * NAMES.index(label) for label in labels])
    words = {10 * place: name for place, name in enumerate(NAMES)}
    model = quick(tiny_config_dir, class_names=words, templates=["a drawing of a {}."])
    model.fit(np.stack([np.asarray(image) for image in images]), numbers)
    assert model.classes_.tolist() == [0, 10, 20, 30, 40]
    assert model.class_names_ == tuple(NAMES)
    assert model.card_["templates"] == ["a drawing of a {}."]
    again = FewShotClassifier.load(model.save(tmp_path))
    assert again.classes_.dtype.kind == "i"
    assert again.predict(images).tolist() == model.predict(images).tolist()
    assert again.class_names == words


def test_a_folder_is_trained_on_as_its_images_with_their_folders(
    tiny_config_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_folder(tmp_path / "shapes" / "train", 4).parent
    write_folder(folder / "test", 1, first=6)
    model = quick(tiny_config_dir, progress=True, shots=3, store=tmp_path / "store").fit(folder)
    said = capsys.readouterr().err
    assert "5 classes, named after the folders" in said
    assert "held out" not in said
    assert model.card_["dataset"] == "shapes"
    assert model.card_["episode"]["train_digest"]
    assert model.score(folder) in {count / 5 for count in range(6)}
    # The maps are there for the next one, and nothing else of the first is.
    kept = sorted((tmp_path / "store").rglob("part-*.arrow"))
    assert kept
    quick(tiny_config_dir, shots=3, store=tmp_path / "store").fit(folder)
    assert sorted((tmp_path / "store").rglob("part-*.arrow")) == kept


def test_all_images_of_a_folder_without_splits_are_trained_on(
    tiny_config_dir: Path, tmp_path: Path
) -> None:
    folder = write_folder(tmp_path / "shapes", 3)
    model = quick(tiny_config_dir, class_names={"red circle": "crimson disc"}).fit(folder)
    # Cross-validation judges by each image once.
    assert model.card_["metrics"]["validation_samples"] == 15
    assert model.classes_.tolist() == NAMES
    assert "crimson disc" in model.class_names_


def test_a_method_that_keeps_nothing_predicts_and_cannot_be_saved(
    tiny_config_dir: Path, tmp_path: Path
) -> None:
    images, labels = drawings(3)
    model = quick(tiny_config_dir, method="zero_shot").fit(images, labels)
    assert model.predict(images).shape == (15,)
    assert model.best_params_ == {}
    with pytest.raises(InputError, match="keeps nothing of what it was fitted to"):
        model.save(tmp_path)


def test_another_method_and_metric(tiny_config_dir: Path, tmp_path: Path) -> None:
    images, labels = drawings(3)
    model = quick(tiny_config_dir, method="tip_adapter", metric="mean_per_class")
    model.fit(images, labels)
    assert model.best_params_.keys() == {"beta", "gamma"}
    few = [*images[:3], images[14]]
    predicted = model.predict(few)
    right = predicted == np.array([*labels[:3], labels[14]])
    assert model.score(few, [*labels[:3], labels[14]]) == pytest.approx(
        (right[:3].mean() + right[3]) / 2
    )
    again = FewShotClassifier.load(model.save(tmp_path))
    np.testing.assert_array_equal(again.predict_proba(images), model.predict_proba(images))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"backbone": "tinny"}, "no backbone=tinny.*'tiny'"),
        ({"method": "saef"}, "'saef'.*Did you mean 'safe'"),
        ({"settings": {"search.lrr": 1}}, "no setting 'search.lrr'"),
        ({"shots": 0}, "shots is 0"),
        ({"shots": "many"}, "shots is 'many'"),
        ({"candidates": -1}, "search.candidates is -1"),
        ({"metric": "f1"}, 'evaluation.metric is "f1"'),
        ({"device": "tpu"}, "device is 'tpu'"),
        ({"templates": ["a photo"]}, "template 'a photo'"),
        ({"class_names": {"red circle": "Black_Cross"}}, "prompts cannot tell them apart"),
        ({"settings": {"search.lr": object()}}, "setting search.lr is a object"),
    ],
)
def test_a_wrong_parameter_is_named_before_anything_is_trained(
    tiny_config_dir: Path, changes: dict[str, object], said: str
) -> None:
    with pytest.raises(InputError, match=said):
        quick(tiny_config_dir).set_params(**changes).fit(*drawings(2))


def test_images_without_labels_are_refused(tiny_config_dir: Path, tmp_path: Path) -> None:
    images, labels = drawings(1)
    with pytest.raises(InputError, match="fit needs the label of each image"):
        quick(tiny_config_dir).fit(images)
    with pytest.raises(InputError, match="4 labels for 5 images"):
        quick(tiny_config_dir).fit(images, labels[:4])
    with pytest.raises(InputError, match="There is no file or folder"):
        quick(tiny_config_dir).fit(tmp_path / "nothing")


def test_a_bad_image_is_named_before_anything_is_trained(
    tiny_config_dir: Path, tmp_path: Path
) -> None:
    folder = write_folder(tmp_path / "shapes", 3)
    (folder / "red circle" / "00.png").write_bytes(b"no image")
    with pytest.raises(InputError, match=r"1 of 15 images cannot be used: red circle/00\.png"):
        quick(tiny_config_dir).fit(folder)


def test_nothing_is_said_of_images_before_it_is_fitted(tmp_path: Path) -> None:
    images, labels = drawings(1)
    model = FewShotClassifier()
    for ask in (
        lambda: model.predict(images),
        lambda: model.score(images, labels),
        lambda: model.explain(images[0]),
        lambda: model.save(tmp_path),
    ):
        with pytest.raises(NotFittedError, match="not fitted yet"):
            ask()


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("search.lr", 1e-5, 1e-5),
        ("search.lr", {"low": 1e-5, "high": 1e-3, "log": True}, (1e-5, 1e-3)),
        ("data.skip_bad", True, True),
        ("training.parameters", ["q_proj"], ("q_proj",)),
        ("storage", "/tmp/it's here, {a=b}\\", "/tmp/it's here, {a=b}\\"),
        ("cluster.address", None, None),
    ],
)
def test_a_setting_in_python_is_the_one_of_the_command_line(
    key: str, value: object, expected: object
) -> None:
    found: object = load_config([override(key, value)])
    for part in key.split("."):
        found = getattr(found, part)
    if isinstance(value, dict):
        found = (found.low, found.high)  # type: ignore[attr-defined]
    assert (str(found) if key == "storage" else found) == expected


WITHOUT_RAY = """
import socket, sys

def refuse(*arguments, **named):
    raise AssertionError("something went to the network")

socket.socket.connect = socket.socket.connect_ex = refuse
import safe_ray
assert not {"torch", "numpy", "pyarrow", "ray"} & set(sys.modules), "import safe_ray is not light"
from pathlib import Path
from tests.classifier.shapes import drawings, quick
model = quick(Path(sys.argv[1])).fit(*drawings(3))
model.predict(drawings(1)[0])
print(sorted({"ray", "mlflow", "sklearn"} & set(sys.modules)))
"""


@pytest.mark.timeout(200)
def test_neither_ray_nor_a_network_is_needed(tiny_config_dir: Path) -> None:
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_RAY, str(tiny_config_dir)],
        cwd=root,
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"


def test_a_package_attribute_that_does_not_exist_says_so() -> None:
    import safe_ray

    assert "FewShotClassifier" in dir(safe_ray)
    with pytest.raises(AttributeError, match="no attribute 'FewShotClasifier'"):
        safe_ray.FewShotClasifier  # noqa: B018


def test_quick_settings_are_settings() -> None:
    assert load_config([override(key, value) for key, value in QUICK.items()]).features.views == 1
