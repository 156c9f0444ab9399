"""Weights over an image, drawn as heat."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Box = tuple[int, int, int, int]

# Stops of the colours, from what counts for nothing to the peak: dark violet, red, orange, yellow.
# Lightness rises all the way, so that they can be told apart without their hue.
_STOPS = np.array(
    [[48, 18, 89], [139, 30, 105], [214, 60, 64], [246, 140, 38], [252, 225, 110]], np.float64
)
# How much of the image is covered where nothing counts, and at the peak.
_COVER = (0.3, 0.75)


def heat(weights: NDArray[np.floating], size: tuple[int, int], peak: float) -> Image.Image:
    """Return weights as colours, more opaque where they are higher.

    Args:
        weights: `[h, w]`, not negative.
        size: width and height of the result; the weights are interpolated between their places.
        peak: the weight that has the last colour, and all that are higher.

    Returns:
        An RGBA image.
    """
    small = Image.fromarray(np.asarray(weights, np.float32))
    smooth = np.asarray(small.resize(size, Image.Resampling.BICUBIC), np.float64)
    share = np.clip(smooth / max(peak, 1e-12), 0.0, 1.0)
    at = share * (len(_STOPS) - 1)
    low = np.minimum(at.astype(int), len(_STOPS) - 2)
    between = (at - low)[..., None]
    colours = _STOPS[low] * (1 - between) + _STOPS[low + 1] * between
    cover = 255 * (_COVER[0] + (_COVER[1] - _COVER[0]) * share)
    return Image.fromarray(np.dstack([colours, cover]).round().astype(np.uint8), "RGBA")


def draw_over(
    image: Image.Image, weights: NDArray[np.floating], box: Box, peak: float | None = None
) -> Image.Image:
    """Return the image with heat over a part of it.

    Args:
        image: of any size and mode.
        weights: `[h, w]`, not negative.
        box: left, top, right and bottom of what the weights are over, in pixels of the image; it
            may reach beyond it.
        peak: see `heat`; the highest of the weights if there is none.

    Returns:
        An RGB image of the same size.
    """
    left, top, right, bottom = box
    highest = float(np.max(weights)) if peak is None else peak
    layer = Image.new("RGBA", image.size)
    layer.paste(heat(weights, (right - left, bottom - top), highest), (left, top))
    return Image.alpha_composite(image.convert("RGBA"), layer).convert("RGB")
