"""What is written is whole, used by others' libraries alone, and says what the predictor says."""

from __future__ import annotations

import contextlib
import json
import shutil
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from safe_ray.data.views import evaluation_view
from safe_ray.exporting.bundle import write_bundle
from safe_ray.exporting.command import main as export
from safe_ray.exporting.openclip_files import how_to_load
from safe_ray.files import digest_json
from safe_ray.prediction.bundle_files import RECORD, read_bundle
from safe_ray.prediction.bundles import load_bundle
from safe_ray.prediction.command import main as predict
from safe_ray.prediction.predictor import Predictor
from tests.exporting.heads import CLASSES, write_head

TOLERANCE = 1e-4
VIT = {"image_size": 64, "patch_size": 16, "width": 32, "head_width": 8, "layers": 2}

# To trace is a minute of work on a machine that others keep busy.
pytestmark = pytest.mark.timeout(900)


def pictures(count: int = 5) -> list[Image.Image]:
    generator = np.random.default_rng(2)
    sizes = [(90, 70), (64, 64), (200, 80), (30, 45), (64, 100)]
    return [
        Image.fromarray(generator.integers(0, 256, (*sizes[place % 5], 3), np.uint8))
        for place in range(count)
    ]


def pixels_of(predictor: Predictor) -> torch.Tensor:
    return torch.stack([evaluation_view(one, predictor.preprocessing) for one in pictures()])


def run_lines(folder: Path, **names: Any) -> dict[str, Any]:
    """Run the lines that a bundle carries, in its folder."""
    lines = json.loads((folder / RECORD).read_text())["how_to_load"]
    assert "safe_ray" not in "\n".join(lines)
    with contextlib.chdir(folder):
        exec("\n".join(lines), names)
    return names


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_head(tmp_path_factory.mktemp("exported"))


@pytest.fixture(scope="module")
def bundles(head: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A bundle of each format, written by the command."""
    folder = tmp_path_factory.mktemp("bundles")
    for kind in ("open_clip", "onnx", "torch"):
        assert export([str(head), "--out", str(folder / kind), "--format", kind]) == 0
    return {kind: folder / kind for kind in ("open_clip", "onnx", "torch")}


@pytest.fixture
def bundle(bundles: dict[str, Path], tmp_path: Path) -> Path:
    """A copy of open_clip's bundle, to be damaged."""
    return Path(shutil.copytree(bundles["open_clip"], tmp_path / "bundle"))


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    for place, picture in enumerate(pictures()):
        file = tmp_path / "photos" / CLASSES[place % 3] / f"{place}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        picture.save(file)
    return tmp_path / "photos"


@pytest.mark.parametrize("method", ["safe", "logit_blend", "safe_gda"])
def test_the_lines_in_a_bundle_give_the_predictors_logits_with_plain_open_clip(
    tmp_path: Path, method: str
) -> None:
    predictor = Predictor.load(write_head(tmp_path, method))
    write_bundle(tmp_path / "bundle", predictor, "open_clip")
    wanted = predictor.logits(pixels_of(predictor))
    # Nothing but the bundle is there.
    shutil.rmtree(tmp_path / "head")
    (tmp_path / "weights.safetensors").unlink()
    import open_clip

    _, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{tmp_path / 'bundle'}")
    images = torch.stack([preprocess(one) for one in pictures()])
    found = run_lines(tmp_path / "bundle", images=images)
    assert wanted.std() > 0.01
    assert torch.allclose(found["logits"], wanted, atol=TOLERANCE)
    probabilities = torch.softmax(wanted / predictor.temperature, -1)
    assert torch.allclose(found["probabilities"], probabilities, atol=TOLERANCE)


@pytest.mark.parametrize("kind", ["open_clip", "onnx"])
def test_a_pooling_that_is_spread_over_its_tower_is_written_whole(
    tmp_path: Path, kind: str
) -> None:
    head = write_head(tmp_path, name="safe-ray-test-export-vit", vision_cfg=VIT)
    predictor = Predictor.load(head)
    pixels = pixels_of(predictor)
    wanted = predictor.logits(pixels)
    written = write_bundle(tmp_path / "bundle", predictor, kind)
    assert written.difference < TOLERANCE
    if kind == "onnx":
        found = run_lines(tmp_path / "bundle", pixels=pixels.numpy())
        assert np.abs(np.asarray(found["logits"]) - wanted.numpy()).max() < TOLERANCE
        return
    import open_clip

    _, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{tmp_path / 'bundle'}")
    found = run_lines(tmp_path / "bundle", images=torch.stack([preprocess(p) for p in pictures()]))
    # Two whole towers do not round the maps between them.
    assert wanted.std() > 0.01
    assert (found["logits"] - wanted).abs().max() < 0.01 * wanted.std()


def test_the_documentation_shows_the_lines_as_bundles_have_them() -> None:
    text = (Path(__file__).parents[2] / "docs" / "export.md").read_text()
    block = "\n".join(f"    {line}" for line in how_to_load("visual.attnpool", "features"))
    assert block in text


@pytest.mark.parametrize("kind", ["onnx", "torch"])
def test_the_lines_of_a_graph_give_the_predictors_logits(
    head: Path, bundles: dict[str, Path], kind: str
) -> None:
    predictor = Predictor.load(head)
    pixels = pixels_of(predictor)
    given = pixels.numpy() if kind == "onnx" else pixels
    found = run_lines(bundles[kind], pixels=given)
    wanted = predictor.logits(pixels).numpy()
    assert np.abs(np.asarray(found["logits"]) - wanted).max() < TOLERANCE
    probabilities = predictor.probabilities(pixels).numpy()
    assert np.abs(np.asarray(found["probabilities"]) - probabilities).max() < TOLERANCE


@pytest.mark.parametrize("method", ["safe_a", "proker"])
def test_methods_that_are_no_linear_classifier_become_onnx_graphs(
    tmp_path: Path, method: str
) -> None:
    predictor = Predictor.load(write_head(tmp_path, method))
    assert write_bundle(tmp_path / "bundle", predictor, "onnx").difference < TOLERANCE


def test_a_graph_has_a_free_number_of_images_and_a_current_opset(bundles: dict[str, Path]) -> None:
    import onnx

    graph = onnx.load(bundles["onnx"] / "model.onnx")
    onnx.checker.check_model(graph)
    [pixels] = graph.graph.input
    shape = pixels.type.tensor_type.shape.dim
    assert pixels.type.tensor_type.elem_type == onnx.TensorProto.UINT8
    assert (shape[0].dim_param, [each.dim_value for each in shape[1:]]) == ("batch", [3, 64, 64])
    assert [each.name for each in graph.graph.output] == ["probabilities", "logits"]
    assert [each.version for each in graph.opset_import if each.domain == ""] == [23]


def test_the_file_of_a_program_holds_no_pickled_tensor(bundles: dict[str, Path]) -> None:
    configured = []
    with zipfile.ZipFile(bundles["torch"] / "model.pt2") as archive:
        for name in archive.namelist():
            if name.endswith("_config.json"):
                configured += json.loads(archive.read(name))["config"].values()
            assert not name.endswith((".pkl", ".pickle"))
    assert len(configured) > 20
    assert not any(each["use_pickle"] for each in configured)


@pytest.mark.parametrize("kind", ["open_clip", "onnx"])
def test_a_bundle_is_predicted_with_as_its_head_is(
    head: Path, bundles: dict[str, Path], photos: Path, tmp_path: Path, kind: str
) -> None:
    said = {}
    for name, model in (("head", head), ("bundle", bundles[kind])):
        out = tmp_path / f"{name}.jsonl"
        assert predict([str(model), str(photos), "--top", "3", "--out", str(out)]) == 0
        said[name] = [json.loads(line) for line in out.read_text().splitlines()]
        assert json.loads(out.with_suffix(".report.json").read_text())["samples"] == 5
    for one, other in zip(said["head"], said["bundle"], strict=True):
        assert other == {
            key: pytest.approx(value, abs=1e-5) if isinstance(value, float) else value
            for key, value in one.items()
        }


def test_an_open_clip_bundle_has_the_other_blends_too(head: Path, bundles: dict[str, Path]) -> None:
    predictor = Predictor.load(head, alpha=0.9)
    pixels = pixels_of(predictor)
    found = load_bundle(bundles["open_clip"], alpha=0.9).logits(pixels)
    assert torch.allclose(found, predictor.logits(pixels), atol=TOLERANCE)
    at_its_own = load_bundle(bundles["open_clip"]).logits(pixels)
    assert not torch.allclose(found, at_its_own, atol=100 * TOLERANCE)


def test_another_blend_is_exported_where_it_is_asked_for(head: Path, tmp_path: Path) -> None:
    assert export([str(head), "--out", str(tmp_path / "b"), "--alpha", "1"]) == 0
    assert read_bundle(tmp_path / "b").knobs == {"alpha": 1.0}
    predictor = Predictor.load(head, alpha=1.0)
    pixels = pixels_of(predictor)
    found = load_bundle(tmp_path / "b").logits(pixels)
    assert torch.allclose(found, predictor.logits(pixels), atol=TOLERANCE)


# --- what cannot be read is told in a sentence, with exit status 2 ---


def edit(bundle: Path, **changes: Any) -> None:
    """Change the record, with its digest made right again."""
    record = json.loads((bundle / RECORD).read_text())
    record.pop("digest")
    record.update(changes)
    (bundle / RECORD).write_text(json.dumps({**record, "digest": digest_json(record)}))


@contextlib.contextmanager
def refused(capsys: pytest.CaptureFixture[str], words: str) -> Iterator[None]:
    capsys.readouterr()
    yield
    said = capsys.readouterr()
    assert words in said.err
    assert len(said.err.splitlines()) == 1
    assert said.out == ""


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"format_version": 2}, "format_version 2, and this version of safe_ray reads 1 at most"),
        ({"class_names": ["cat", "dog"]}, "is for 3 classes, and the bundle names 2"),
        ({"files": {}}, "does not name the file open_clip_config.json"),
        ({"temperature": 0}, "something else than belongs there in temperature"),
        ({"alpha_is_open": False}, "has its blend in itself"),
        ({"format": "torch", "files": {"model.pt2": {"sha256": "", "bytes": 1}}}, "is to run it"),
        ({"pooling": "somebodys.module"}, "'somebodys.module', which is not of this package"),
    ],
)
def test_a_record_that_does_not_fit_is_refused(
    bundle: Path,
    photos: Path,
    capsys: pytest.CaptureFixture[str],
    changes: dict[str, Any],
    words: str,
) -> None:
    edit(bundle, **changes)
    alpha = ["--alpha", "0.5"] if "alpha_is_open" in changes else []
    with refused(capsys, words):
        assert predict([str(bundle), str(photos), *alpha]) == 2


def test_a_newer_record_is_known_before_its_digest_is(
    bundle: Path, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    record = json.loads((bundle / RECORD).read_text())
    (bundle / RECORD).write_text(json.dumps({**record, "format_version": 7}))
    with refused(capsys, "format_version 7"):
        assert predict([str(bundle), str(photos)]) == 2
    (bundle / RECORD).write_text(json.dumps({**record, "temperature": 9.0}))
    with refused(capsys, "is damaged, or was edited"):
        assert predict([str(bundle), str(photos)]) == 2


@pytest.mark.parametrize(
    "name", ["open_clip_model.safetensors", "classifier.safetensors", "open_clip_config.json"]
)
def test_a_file_that_was_cut_or_changed_is_refused(
    bundle: Path, photos: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    content = (bundle / name).read_bytes()
    (bundle / name).write_bytes(content[: len(content) // 2])
    with refused(capsys, f"{name} has {len(content) // 2} bytes instead of {len(content)}"):
        assert predict([str(bundle), str(photos)]) == 2
    (bundle / name).write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with refused(capsys, "its SHA-256 differs"):
        assert predict([str(bundle), str(photos)]) == 2
    (bundle / name).unlink()
    with refused(capsys, f"{name} cannot be read"):
        assert predict([str(bundle), str(photos)]) == 2


@pytest.mark.parametrize(
    ("place", "value"), [("width", 10**9), ("layers", [10**5, 1, 1, 1]), ("width", 4096)]
)
def test_a_configuration_cannot_ask_for_more_than_the_weights_have(
    bundle: Path, place: str, value: Any
) -> None:
    from safe_ray.errors import InputError
    from safe_ray.files import sha256_hex

    file = bundle / "open_clip_config.json"
    config = json.loads(file.read_text())
    config["model_cfg"]["vision_cfg"][place] = value
    file.write_text(json.dumps(config))
    files = json.loads((bundle / RECORD).read_text())["files"]
    files[file.name] = {"sha256": sha256_hex(file.read_bytes()), "bytes": file.stat().st_size}
    edit(bundle, files=files)
    with pytest.raises(
        InputError, match=r"no size of a model|is not as open_clip_config\.json has"
    ):
        load_bundle(bundle)


def test_onnx_without_its_packages_names_the_extra(
    head: Path,
    bundles: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    # What Python does for a package that is not installed.
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with refused(capsys, "--format onnx needs onnxruntime: pip install 'safe-ray[onnx]'"):
        assert export([str(head), "--out", str(tmp_path / "b"), "--format", "onnx"]) == 2
    with refused(capsys, "needs onnxruntime"):
        assert predict([str(bundles["onnx"]), str(tmp_path / "x.png")]) == 2
