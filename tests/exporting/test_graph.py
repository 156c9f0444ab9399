"""One module does what a predictor does, for every method, and becomes a graph."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from safe_ray.errors import InputError
from safe_ray.exporting.graph import ExportedModel, traced
from safe_ray.methods.features import MappedFeatures
from safe_ray.methods.linear import HasLinear
from safe_ray.prediction.predictor import Predictor
from tests.exporting.heads import CLASSES, LINEAR, METHODS, TEMPERATURE, write_head

SIZE = 64
TOLERANCE = 1e-4

# To trace is a minute of work on a machine that others keep busy.
pytestmark = pytest.mark.timeout(900)


def some_pixels(images: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(images)
    return torch.randint(256, (images, 3, SIZE, SIZE), dtype=torch.uint8, generator=generator)


@pytest.fixture(scope="module", params=METHODS)
def of_method(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, Predictor]:
    """Each method, and a head of it."""
    folder = tmp_path_factory.mktemp(request.param)
    return request.param, Predictor.load(write_head(folder, request.param))


@torch.no_grad()
def test_the_module_says_of_every_method_what_the_predictor_says(
    of_method: tuple[str, Predictor],
) -> None:
    _, predictor = of_method
    pixels = some_pixels(5)
    wanted = predictor.logits(pixels)
    found = ExportedModel(predictor)(pixels)
    assert wanted.std() > 0.01
    assert torch.allclose(found["logits"], wanted, atol=TOLERANCE)
    assert torch.allclose(found["probabilities"], torch.softmax(wanted / TEMPERATURE, -1))


@torch.no_grad()
def test_the_linear_form_is_the_method(of_method: tuple[str, Predictor]) -> None:
    method, predictor = of_method
    shape = (4, 1, predictor.backbone.tokens, predictor.backbone.width)
    maps = torch.randn(shape, generator=torch.Generator().manual_seed(1)).half()
    features = MappedFeatures(
        maps, predictor.backbone.pooling, predictor.backbone.state, predictor.device
    )
    fitted = predictor.fitted
    linear = fitted.linear(predictor.at) if isinstance(fitted, HasLinear) else None
    assert (linear is not None) == (method in LINEAR)
    if linear is not None:
        head = predictor.backbone.state if linear.head is None else linear.head
        found = linear.logits(features.pooled([head])[0, :, 0], features.original[:, 0])
        assert torch.allclose(found, fitted.logits(features, predictor.at), atol=TOLERANCE)


@pytest.mark.parametrize("method", ["safe_a", "proker", "clip_adapter"])
def test_a_program_of_torch_takes_any_number_of_images(tmp_path: Path, method: str) -> None:
    predictor = Predictor.load(write_head(tmp_path, method))
    run = traced(ExportedModel(predictor), SIZE).module()
    for images in (1, 2, 7):
        pixels = some_pixels(images)
        found = run(pixels)
        assert found["logits"].shape == (images, len(CLASSES))
        assert torch.allclose(found["logits"], predictor.logits(pixels), atol=TOLERANCE)


def test_a_method_that_looks_at_numbers_is_refused_in_a_sentence(tmp_path: Path) -> None:
    class Picky:
        def logits(self, features, at):
            pooled = features.original[:, 0]
            return pooled[:, :3] if float(pooled.sum()) >= 0 else pooled[:, 3:6]

    predictor = Predictor.load(write_head(tmp_path))
    object.__setattr__(predictor, "fitted", Picky())
    with pytest.raises(InputError, match="cannot be written as a graph"):
        traced(ExportedModel(predictor), SIZE)
