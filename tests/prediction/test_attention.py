"""Where heads look: weights over the evaluation view, and heat that lies where the view is."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from safe_ray.data.views import Preprocessing, evaluation_view
from safe_ray.errors import InputError
from safe_ray.features.trunk import run_trunk
from safe_ray.methods.attention import look_at
from safe_ray.prediction.attention import look, overlay
from safe_ray.prediction.predictor import Predictor
from safe_ray.specs import BackboneSpec
from tests.backbones.models import small_spec
from tests.conftest import draw_shape
from tests.prediction.heads import CLASSES, moved, write_head

VIT = {"image_size": 64, "patch_size": 16, "width": 32, "head_width": 8, "layers": 2}


def pixels(predictor: Predictor, count: int = 3) -> torch.Tensor:
    import io

    views = [
        evaluation_view(
            Image.open(io.BytesIO(draw_shape(CLASSES[n % 3], n))).convert("RGB"),
            predictor.preprocessing,
        )
        for n in range(count)
    ]
    return torch.stack(views)


def weights_of(
    predictor: Predictor, shown: torch.Tensor, head: dict[str, torch.Tensor]
) -> torch.Tensor:
    backbone = predictor.backbone
    maps = run_trunk(backbone, shown, "fp32", torch.device("cpu"))
    state = {name: tensor.unsqueeze(0) for name, tensor in head.items()}
    return backbone.pooling.attention(backbone.pooling.prepare(maps), state)[0].mean(1)


def test_a_tuned_pooling_is_seen_beside_the_original(
    tmp_path: Path, tiny_backbone: BackboneSpec
) -> None:
    backbone = write_head(tmp_path, tiny_backbone)
    predictor = Predictor.load(tmp_path)
    shown = pixels(predictor)

    found = look(predictor, shown)

    assert found.original.shape == found.tuned.shape == (3, 2, 2)
    for part in (found.original, found.tuned):
        assert part.dtype == torch.float32
        assert torch.allclose(part.sum((1, 2)), torch.ones(3))
        assert bool((part >= 0).all())
    assert torch.allclose(found.original.flatten(1), weights_of(predictor, shown, backbone.state))
    assert torch.allclose(
        found.tuned.flatten(1), weights_of(predictor, shown, moved(backbone.state)), atol=1e-6
    )
    assert not torch.allclose(found.original, found.tuned)
    assert torch.equal(found.logits, predictor.logits(shown))


def test_a_method_that_blends_weights_shows_those_in_between(
    tmp_path: Path, tiny_backbone: BackboneSpec
) -> None:
    method = {
        "name": "weights",
        "module": "safe_ray.methods.tuned",
        "options": {"blend": "weights"},
    }
    backbone = write_head(tmp_path, tiny_backbone, method=method)
    predictor = Predictor.load(tmp_path, alpha=0.25)
    shown = pixels(predictor)
    tuned = moved(backbone.state)
    between = {n: torch.lerp(t, tuned[n], 0.25) for n, t in backbone.state.items()}
    expected = weights_of(predictor, shown, between)
    assert torch.allclose(look(predictor, shown).tuned.flatten(1), expected, atol=1e-6)


def test_a_method_without_a_pooling_of_its_own_looks_where_the_original_does(
    tmp_path: Path, tiny_backbone: BackboneSpec
) -> None:
    method = {"name": "residual", "module": "safe_ray.methods.task_residual", "options": {}}
    state = {"adapter.residual": torch.randn(3, 64)}
    write_head(tmp_path, tiny_backbone, state, method=method, knobs={"ratio": 0.5})
    found = look(Predictor.load(tmp_path), pixels(Predictor.load(tmp_path)))
    assert torch.equal(found.original, found.tuned)


def test_no_image_has_no_look(tmp_path: Path, tiny_backbone: BackboneSpec) -> None:
    write_head(tmp_path, tiny_backbone)
    found = look(Predictor.load(tmp_path), torch.empty(0, 3, 64, 64, dtype=torch.uint8))
    assert found.original.shape == (0, 2, 2)
    assert found.logits.shape == (0, 3)


class Mute:
    """A family of another make, which cannot say where it looks."""


def test_a_pooling_that_cannot_say_where_it_looks_is_named(
    tmp_path: Path, tiny_backbone: BackboneSpec
) -> None:
    write_head(tmp_path, tiny_backbone)
    own = Predictor.load(tmp_path)
    arguments = (own.fitted, own.at)
    with pytest.raises(InputError, match=r"test_attention has no attention\(\)"):
        look_at(torch.zeros(1, 4, 512), *arguments, Mute(), own.backbone.state, own.device)  # type: ignore[arg-type]
    pooling, state = own.backbone.pooling, own.backbone.state
    with pytest.raises(InputError, match="6 tokens is no square"):
        look_at(torch.zeros(1, 6, 512), *arguments, pooling, state, own.device)


def test_a_class_token_keeps_a_share_that_no_place_has(tmp_path: Path) -> None:
    write_head(tmp_path / "head", small_spec(tmp_path, name="safe-ray-test-look", vision_cfg=VIT))
    own = Predictor.load(tmp_path / "head")
    found = look(own, pixels(own))
    assert found.original.shape == (3, 4, 4)
    shares = found.original.flatten(1).sum(1)
    assert bool((shares > 0.5).all())
    assert bool((shares < 1.0).all())


def test_a_tower_that_averages_its_tokens_has_no_picture(tmp_path: Path) -> None:
    vision = {**VIT, "pool_type": "avg"}
    write_head(
        tmp_path / "head", small_spec(tmp_path, name="safe-ray-test-blind", vision_cfg=vision)
    )
    own = Predictor.load(tmp_path / "head")
    with pytest.raises(InputError, match="no attention pooling that can be tuned"):
        look(own, pixels(own))


GREY = (128, 128, 128)


@pytest.mark.parametrize(
    ("mode", "size", "box"),
    [
        ("shortest", (120, 80), (20, 0, 100, 80)),
        ("shortest", (80, 120), (0, 20, 80, 100)),
        ("squash", (120, 80), (0, 0, 120, 80)),
        ("longest", (120, 80), (0, -20, 120, 100)),
    ],
)
def test_heat_lies_over_what_the_model_sees(
    mode: str, size: tuple[int, int], box: tuple[int, int, int, int]
) -> None:
    preprocessing = Preprocessing(64, (0.5,) * 3, (0.5,) * 3, resize_mode=mode)
    weights = torch.zeros(4, 4)
    weights[3, 3] = 1.0
    drawn = overlay(Image.new("RGB", size, GREY), weights, preprocessing)
    assert drawn.size == size
    assert drawn.mode == "RGB"
    bright = np.asarray(drawn).astype(int)
    touched = np.abs(bright - GREY).sum(-1) > 10
    left, top, right, bottom = box
    inside = np.zeros(touched.shape, bool)
    inside[max(top, 0) : bottom, max(left, 0) : right] = True
    assert (touched == inside).all()
    # The middle of the last place, where all of the weight is.
    x, y = right - (right - left) // 8, bottom - (bottom - top) // 8
    if y < size[1]:
        assert bright[y, x].sum() == bright.sum(-1).max()


def test_pictures_on_one_scale_can_be_compared() -> None:
    image, weights = Image.new("RGB", (40, 40), GREY), torch.full((2, 2), 0.25)
    own = np.asarray(overlay(image, weights)).astype(int).sum()
    shared = np.asarray(overlay(image, weights, peak=1.0)).astype(int).sum()
    assert shared < own
