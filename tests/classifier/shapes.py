"""Drawings of shapes as people give images to a classifier, and one for the tiny backbone."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

from PIL import Image

from safe_ray import FewShotClassifier
from tests.conftest import SHAPES, draw_shape

QUICK = {"features.views": 1, "search.epochs": 3}


def drawings(count: int, first: int = 0) -> tuple[list[Image.Image], list[str]]:
    """Return so many drawings of each shape, and what each shows."""
    variants = [(name, variant) for name in SHAPES for variant in range(first, first + count)]
    images = [Image.open(io.BytesIO(draw_shape(*one))) for one in variants]
    return images, [name for name, _ in variants]


def write_folder(root: Path, count: int, first: int = 0) -> Path:
    """Write so many drawings of each shape into a folder of its name."""
    for name in SHAPES:
        (root / name).mkdir(parents=True, exist_ok=True)
        for variant in range(first, first + count):
            (root / name / f"{variant:02d}.png").write_bytes(draw_shape(name, variant))
    return root


def quick(config_dir: Path, **changes: Any) -> FewShotClassifier:
    """Return a classifier that takes a second to fit: random weights, two candidates."""
    return FewShotClassifier(
        "tiny",
        **{
            "candidates": 2,
            "device": "cpu",
            "settings": QUICK,
            "config_dir": config_dir,
            "progress": False,
            **changes,
        },
    )
