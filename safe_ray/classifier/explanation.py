"""Where a head looks in one image: numbers, a picture, and a table in a notebook."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

if TYPE_CHECKING:
    from safe_ray.classifier.samples import Sample
    from safe_ray.prediction.predictor import Predictor

_TOP = 3
_SIDE, _GAP, _LINE = 256, 12, 22


@dataclass(frozen=True, eq=False)
class Explanation:
    """Where the original and the tuned pooling look in one image, and what each says.

    Attributes:
        picture: the image.
        classes: the labels, in the order of the probabilities.
        original: float32 `[h, w]`, which adds up to 1 at most: how much each place of the
            evaluation view counts in what the original pooling returns, the mean over its heads of
            attention.
        tuned: the same of the tuned pooling.
        original_probabilities: float32 `[classes]`, of the original model: zero-shot.
        tuned_probabilities: float32 `[classes]`, as `predict_proba` returns them.
        overlays: the image under the weights of the original and of the tuned pooling as heat, on
            one scale.
    """

    picture: Image.Image
    classes: np.ndarray
    original: np.ndarray
    tuned: np.ndarray
    original_probabilities: np.ndarray
    tuned_probabilities: np.ndarray
    overlays: tuple[Image.Image, Image.Image]

    def original_says(self, top: int = _TOP) -> list[tuple[Any, float]]:
        """Return the most probable labels of the original model, with their probabilities."""
        return _best(self.classes, self.original_probabilities, top)

    def tuned_says(self, top: int = _TOP) -> list[tuple[Any, float]]:
        """Return the most probable labels of the tuned model, with their probabilities."""
        return _best(self.classes, self.tuned_probabilities, top)

    def __repr__(self) -> str:
        (before, sure), (after, surer) = self.original_says(1)[0], self.tuned_says(1)[0]
        return f"Explanation(original: {before} {sure:.0%}, tuned: {after} {surer:.0%})"

    def image(self) -> Image.Image:
        """Return the image, and beside it where the original and the tuned pooling look."""
        panels = [
            (self.picture, ["image"]),
            (self.overlays[0], ["original", *_lines(self.original_says())]),
            (self.overlays[1], ["tuned", *_lines(self.tuned_says())]),
        ]
        width = len(panels) * (_SIDE + _GAP) + _GAP
        height = _SIDE + 2 * _GAP + (_TOP + 1) * _LINE
        sheet = Image.new("RGB", (width, height), "white")
        draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(15)
        for place, (picture, lines) in enumerate(panels):
            left = _GAP + place * (_SIDE + _GAP)
            small = _within(picture, _SIDE)
            sheet.paste(
                small, (left + (_SIDE - small.width) // 2, _GAP + (_SIDE - small.height) // 2)
            )
            for number, line in enumerate(lines):
                top = _SIDE + 2 * _GAP + number * _LINE
                draw.text((left, top), _fitting(line, font), fill="black", font=font)
        return sheet

    def show(self) -> None:
        """Open the picture in the viewer of this machine."""
        self.image().show()

    def _repr_html_(self) -> str:
        panels: tuple[tuple[str, Image.Image, Sequence[tuple[Any, float]]], ...] = (
            ("image", self.picture, ()),
            ("original", self.overlays[0], self.original_says()),
            ("tuned", self.overlays[1], self.tuned_says()),
        )
        cells = "".join(
            f'<td style="vertical-align:top;text-align:left"><b>{name}</b><br>'
            f'<img src="{_data_uri(picture)}" alt="{_described(name, says)}"><br>'
            + "<br>".join(html.escape(line) for line in _lines(says))
            + "</td>"
            for name, picture, says in panels
        )
        return f"<table><tr>{cells}</tr></table>"


def explain(predictor: Predictor, sample: Sample, classes: np.ndarray) -> Explanation:
    """Return where a head looks in an image, and what it says of it.

    Args:
        predictor: the head.
        sample: the image.
        classes: the labels.

    Raises:
        InputError: it cannot be read, or the pooling cannot say where it looks.
    """
    import torch

    from safe_ray.data.views import evaluation_view
    from safe_ray.features.trunk import run_trunk
    from safe_ray.heads.bank import tuned_logits
    from safe_ray.prediction.attention import look, overlay

    picture = sample.decode()
    pixels = evaluation_view(picture, predictor.preprocessing).unsqueeze(0)
    seen = look(predictor, pixels)
    backbone, task = predictor.backbone, predictor.task
    maps = run_trunk(backbone, pixels, "fp32", predictor.device)
    zero_shot = tuned_logits(backbone.pool(maps), task.classifier, task.logit_scale)
    # One scale, so that a pooling which looks at one place only is seen to do so.
    peak = float(max(seen.original[0].max(), seen.tuned[0].max()))
    weights = (seen.original[0], seen.tuned[0])
    before, after = (overlay(picture, one, predictor.preprocessing, peak) for one in weights)
    return Explanation(
        picture,
        classes,
        seen.original[0].numpy(),
        seen.tuned[0].numpy(),
        torch.softmax(zero_shot, -1)[0].float().cpu().numpy(),
        predictor.probabilities(pixels)[0].numpy(),
        (before, after),
    )


def _best(classes: np.ndarray, probabilities: np.ndarray, top: int) -> list[tuple[Any, float]]:
    order = np.argsort(-probabilities, kind="stable")[:top]
    return [(classes[place].item(), float(probabilities[place])) for place in order]


def _lines(says: Sequence[tuple[Any, float]]) -> list[str]:
    return [f"{probability:.0%} {label}" for label, probability in says]


def _within(picture: Image.Image, side: int) -> Image.Image:
    scale = side / max(picture.size)
    return picture.resize(
        (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
    )


def _fitting(line: str, font: Any) -> str:
    if font.getlength(line) <= _SIDE:
        return line
    while line and font.getlength(f"{line}...") > _SIDE:
        line = line[:-1]
    return f"{line}..."


def _described(name: str, says: Sequence[tuple[Any, float]]) -> str:
    if not says:
        return "the image"
    return html.escape(f"where the {name} pooling looks; it says {', '.join(_lines(says))}")


def _data_uri(picture: Image.Image) -> str:
    buffer = io.BytesIO()
    _within(picture, _SIDE).save(buffer, "PNG", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"
