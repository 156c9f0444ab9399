"""Test images with where the poolings look, as heat over them."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence

import numpy as np

from safe_ray.heat import heat
from safe_ray.report.html.charts import figure
from safe_ray.report.html.tags import Child, Markup, tag
from safe_ray.report.looks import LookedAt

SIDE = 96
"""Of a picture, in pixels of the small copy and in units of the page."""

_FINER = 4
_MOST = 64


def looks_part(looks: Sequence[LookedAt], title: str, prefix: str) -> Markup | None:
    """Return a figure an image, grouped as they come; None if there are no images.

    Args:
        looks: images of one task.
        title: of the method.
        prefix: begins the ids of what is drawn twice; no other part of the page has it.
    """
    if not looks:
        return None
    return tag(
        "div",
        (_figure(one, title, f"{prefix}-{place}") for place, one in enumerate(looks)),
        class_="looks",
    )


def _figure(one: LookedAt, title: str, name: str) -> Markup:
    peak = float(max(one.original.max(), one.tuned.max()))
    same = np.array_equal(one.original, one.tuned)
    panels: list[Child] = [
        _panel("image", f"A test image of the class {one.label}", _photo(one, name))
    ]
    for what, weights in (("original", one.original), (title, one.tuned)):
        label = f"Where {what} looks: most at {_where(weights)}"
        again = None if one.picture is None else tag("use", href=f"#{name}")
        panels.append(_panel(what, label, again, _heat(weights, peak)))
    caption = (
        tag("strong", one.label),
        ". Original: ",
        _said(one.original_said, one.original_probability, one.label),
        f". {title}: ",
        _said(one.said, one.probability, one.label),
        ". Both look at the same." if same else ".",
    )
    return figure(tag("div", panels, class_="panels"), caption, "look")


def _panel(name: str, label: str, *layers: Child) -> Markup:
    picture = tag("svg", *layers, viewBox=f"0 0 {SIDE} {SIDE}", role="img", aria_label=label)
    return tag("div", picture, tag("span", name, aria_hidden="true"))


def _photo(one: LookedAt, name: str) -> Child:
    if one.picture is None:
        return tag("text", "no picture", x=8, y=52, fill="currentColor")
    return _image(one.picture, id=name)


def _heat(weights: np.ndarray, peak: float) -> Markup:
    side = min(_FINER * len(weights), max(_MOST, len(weights)))
    file = io.BytesIO()
    heat(weights, (side, side), peak).save(file, "WEBP", quality=70, method=4)
    return _image(file.getvalue())


def _image(content: bytes, **more: object) -> Markup:
    data = base64.b64encode(content).decode()
    return tag(
        "image",
        href=f"data:image/webp;base64,{data}",
        width=SIDE,
        height=SIDE,
        preserveAspectRatio="none",
        **more,
    )


def _said(said: str, probability: float, label: str) -> Child:
    right = said == label
    mark = tag("span", "right" if right else "wrong", class_="good" if right else "bad")
    return (f"{said} at {100 * probability:.0f}%, ", mark)


def _where(weights: np.ndarray) -> str:
    """Return in words where the highest weight is."""
    row, column = np.unravel_index(int(weights.argmax()), weights.shape)
    thirds = [3 * int(place) // len(weights) for place in (row, column)]
    names = (("top", "middle", "bottom")[thirds[0]], ("left", "centre", "right")[thirds[1]])
    return "the centre" if names == ("middle", "centre") else f"the {names[0]} {names[1]}"
