"""What a validation accuracy is worth is told with it."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pytest
from PIL import Image

from safe_ray import FewShotClassifier
from safe_ray.classifier.evidence import Evidence, twins_that_decide, wilson
from safe_ray.data.readers.base import BYTES_SCHEMA
from safe_ray.errors import InputError
from safe_ray.features.inventory import Inventory, take_inventory
from tests.classifier.shapes import drawings, quick
from tests.conftest import draw_shape


def evidence(gained: int, lost: int, candidates: int = 4) -> Evidence:
    return Evidence(
        accuracy=42 / 64,
        mean_per_class=42 / 64,
        nll=1.0,
        gained=gained,
        lost=lost,
        gain_shown=gained > lost + 8,
        samples=64,
        selection="coop",
        candidates=candidates,
    )


def test_the_interval_is_the_one_of_the_books() -> None:
    # Newcombe (1998), table I: 81 of 263, and 15 of 148.
    assert wilson(81 / 263, 263) == pytest.approx((0.2553, 0.3662), abs=1e-4)
    assert wilson(15 / 148, 148) == pytest.approx((0.0624, 0.1605), abs=1e-4)
    assert wilson(1.0, 5)[1] == 1.0
    assert wilson(0.0, 5)[0] == 0.0


def test_zero_shot_stands_beside_it() -> None:
    found = evidence(14, 3)
    assert found.zero_shot_accuracy == pytest.approx(31 / 64)
    assert str(found) == (
        "of 64 validation images 65.6% are right (95% interval 53.4% to 76.1%) and 48.4% "
        "zero-shot, a gain beyond chance"
    )
    assert "a difference that chance may have given" in str(evidence(4, 3))
    assert str(evidence(3, 3)).endswith("65.6% zero-shot, no difference")


def test_what_the_number_is_not_is_said() -> None:
    [first, second] = evidence(14, 3).sentences(independent=False)
    assert first.startswith("Of 64 validation images")
    assert "best of 4 candidates" in first
    assert "groups=" in second
    assert "validation_data=" in second
    assert len(evidence(14, 3).sentences(independent=True)) == 1
    assert "best of" not in evidence(14, 3, candidates=1).sentences(independent=True)[0]


def inventory(tmp_path: Path, images: Sequence[bytes], prefix: str) -> Inventory:
    table = pa.table(
        {
            "path": [f"{prefix}{place}" for place in range(len(images))],
            "label": pa.array([0] * len(images), pa.int32()),
            "image": list(images),
        },
        schema=BYTES_SCHEMA,
    )
    return take_inventory(table, tmp_path / "inventory.arrow")


def saved_again(encoded: bytes) -> bytes:
    buffer = io.BytesIO()
    Image.open(io.BytesIO(encoded)).convert("RGB").save(buffer, "JPEG", quality=95)
    return buffer.getvalue()


def test_images_that_train_and_decide_are_counted(tmp_path: Path) -> None:
    circle, bar = draw_shape("red circle", 0), draw_shape("green square", 1)
    support = inventory(tmp_path, [circle, bar], "train/")
    others = inventory(tmp_path, [saved_again(circle), draw_shape("blue triangle", 5)], "val/")
    [said] = twins_that_decide(support, others)
    assert said.startswith("1 of 2 images that decide is among those that train as well")
    assert "val/0, which looks like train/0" in said
    [said] = twins_that_decide(support, inventory(tmp_path, [bar], "val/"))
    assert "val/0, which is train/1" in said
    nothing = inventory(tmp_path, [], "val/")
    assert twins_that_decide(support, nothing) == []
    # In cross-validation all of them train and decide, and the same bytes are in one fold.
    twice = inventory(tmp_path, [circle, circle, saved_again(circle), bar], "train/")
    [said] = twins_that_decide(twice, nothing)
    assert said.startswith("1 of 4 images that decide is among")


def test_images_of_a_group_never_train_and_decide(
    tiny_config_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images, labels = drawings(4)
    pairs = [place // 2 for place in range(len(images))]
    model = quick(tiny_config_dir, candidates=1, progress=True).fit(images, labels, groups=pairs)
    assert model.validation_ is not None
    # Of each class one pair trains, and the other decides.
    assert (model.validation_.samples, model.validation_.selection) == (10, "full")
    said = capsys.readouterr().err
    assert "Of 10 validation images" in said
    assert "groups=" not in said


def test_images_that_decide_may_be_given(
    tiny_config_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images, labels = drawings(2)
    others = drawings(3, first=5)
    model = quick(tiny_config_dir, candidates=1).fit(images, labels, validation_data=others)
    assert model.validation_ is not None
    assert (model.validation_.samples, model.validation_.selection) == (15, "full")
    # What decided sees images, classes and the blend as whoever predicts does.
    assert model.score(*others) == pytest.approx(model.validation_.accuracy)
    with pytest.raises(InputError, match="'red circl', and no image that trains has it"):
        FewShotClassifier().fit(images, labels, validation_data=(images[:1], ["red circl"]))
