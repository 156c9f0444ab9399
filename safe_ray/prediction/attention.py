"""Where a head looks in an image, as numbers and as a picture."""

from __future__ import annotations

from PIL import Image
from torch import Tensor

from safe_ray.data.views import Preprocessing, seen_box
from safe_ray.features.trunk import run_trunk
from safe_ray.heat import draw_over
from safe_ray.methods.attention import Look, look_at
from safe_ray.prediction.predictor import Predictor

__all__ = ["Look", "look", "overlay"]


def look(predictor: Predictor, pixels: Tensor) -> Look:
    """Return where the original and the tuned pooling look, and the logits of the method.

    Args:
        predictor: the head.
        pixels: uint8 `[N, 3, S, S]`, as `safe_ray.data.views.evaluation_view` makes them.

    Raises:
        InputError: the pooling of the head is of a family that cannot say where it looks.
    """
    backbone, device = predictor.backbone, predictor.device
    maps = run_trunk(backbone, pixels, "fp32", device)
    return look_at(maps, predictor.fitted, predictor.at, backbone.pooling, backbone.state, device)


def overlay(
    image: Image.Image,
    weights: Tensor,
    preprocessing: Preprocessing | None = None,
    peak: float | None = None,
) -> Image.Image:
    """Return the image with the weights of one `Look` as heat over what the model sees of it.

    Args:
        image: as `safe_ray.data.images.decode_image` returns it, of any size.
        weights: `[h, w]`, of one image.
        preprocessing: how the image is made into pixels; the largest square in the middle is seen
            if there is none, as CLIP's own preprocessing has it.
        peak: the weight that has the brightest colour, so that pictures can share a scale; the
            highest of the weights if there is none.

    Returns:
        An RGB image of the same size.
    """
    mode = "shortest" if preprocessing is None else preprocessing.resize_mode
    return draw_over(image, weights.float().cpu().numpy(), seen_box(image.size, mode), peak)
