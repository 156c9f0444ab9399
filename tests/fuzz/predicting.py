"""Readers of what a head of anybody's brings with it, and of what is to be classified."""

from __future__ import annotations

import functools
import json
import tempfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import torch

from safe_ray.backbones.openclip import load_backbone
from safe_ray.data.prompts import render_prompts
from safe_ray.exporting.bundle import write_bundle
from safe_ray.files import digest_json
from safe_ray.heads.artifact import CARD_FILE, WEIGHTS_FILE, save_head
from safe_ray.prediction.bundle_files import RECORD
from safe_ray.prediction.heads import find_head
from safe_ray.prediction.images import find_pictures
from safe_ray.prediction.models import load_model
from safe_ray.prediction.predictor import Predictor
from safe_ray.report.summary import write_summary
from safe_ray.specs import BackboneSpec
from tests.fuzz.reader import Reader, sha256_of
from tests.heads.test_artifact import card
from tests.report.results import result

CLASSES = ("red circle", "blue square")
TEMPLATES = ("a drawing of a {}.",)
_MODEL = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "layers": [1, 1, 1, 1], "width": 8},
    "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
}


@functools.cache
def _model() -> Path:
    file = Path(tempfile.mkdtemp(prefix="fuzz-model-"), "safe-ray-fuzz-tiny.json")
    file.write_text(json.dumps(_MODEL))
    return file


def _make_sweep(folder: Path) -> None:
    spec = BackboneSpec("tiny", _model().stem, None, str(_model()))
    backbone = load_backbone(spec)
    named = {"name": "tiny", "model": spec.model, "pretrained": None, "model_config": str(_model())}
    save_head(
        folder / "results" / "head",
        backbone.state,
        card(
            backbone={**named, "digest": backbone.digest},
            class_names=list(CLASSES),
            templates=list(TEMPLATES),
            prompts_digest=digest_json(render_prompts(CLASSES, TEMPLATES)),
            calibration={"temperature": 1.5},
        ),
    )
    from dataclasses import replace

    write_summary([replace(result(dataset="shapes"), head="results/head")], folder)


def _read_sweep(folder: Path) -> torch.Tensor:
    predictor = Predictor.load(find_head(str(folder)))
    size = predictor.preprocessing.size
    found = predictor.probabilities(torch.zeros(1, 3, size, size, dtype=torch.uint8))
    assert found.shape == (1, len(predictor.class_names))
    return found


def _sign_head(folder: Path) -> None:
    file = folder / "results" / "head" / CARD_FILE
    try:
        value = json.loads(file.read_bytes())
        value["weights"]["sha256"] = sha256_of(file.with_name(WEIGHTS_FILE))
        file.write_text(json.dumps(value))
    except (OSError, ValueError, TypeError, KeyError):
        return


def _make_bundle(folder: Path) -> None:
    with tempfile.TemporaryDirectory(prefix="fuzz-sweep-") as sweep:
        _make_sweep(Path(sweep))
        predictor = Predictor.load(Path(sweep, "results", "head"))
    write_bundle(folder / "bundle", predictor, "open_clip")


def _read_bundle(folder: Path) -> torch.Tensor:
    model = load_model(find_head(str(folder / "bundle")))
    size = model.preprocessing.size
    found = model.logits(torch.zeros(1, 3, size, size, dtype=torch.uint8))
    assert found.shape == (1, len(model.class_names))
    return found


def _sign_bundle(folder: Path) -> None:
    file = folder / "bundle" / RECORD
    try:
        value = json.loads(file.read_bytes())
        for name in value["files"]:
            other = file.with_name(name)
            value["files"][name] = {"sha256": sha256_of(other), "bytes": other.stat().st_size}
        value.pop("digest", None)
        file.write_text(json.dumps({**value, "digest": digest_json(value)}))
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return


def _make_lists(folder: Path) -> None:
    rows = [{"path": f"{number}.png", "class": CLASSES[number % 2]} for number in range(6)]
    lines = [f"{row['path']},{row['class']}" for row in rows]
    (folder / "a.csv").write_text("\n".join(["path,class", *lines]) + "\n")
    (folder / "b.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    pq.write_table(pa.Table.from_pylist(rows), folder / "c.parquet")


def _read_lists(folder: Path) -> int:
    from safe_ray.errors import InputError

    refused: list[InputError] = []
    for name in ("a.csv", "b.jsonl", "c.parquet"):
        try:
            list(find_pictures([str(folder / name)], CLASSES))
        except InputError as error:
            refused.append(error)
    if refused:
        raise refused[0]
    return 0


READERS = (
    Reader("predict", _make_sweep, _read_sweep, sign=_sign_head, share=2),
    Reader("bundle", _make_bundle, _read_bundle, sign=_sign_bundle, share=1),
    Reader("images to predict", _make_lists, _read_lists, own=False, share=3),
)
