"""A small data set in CoOp's layout, written to disk, and its spec."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

from PIL import Image

from safe_ray.specs import DatasetSpec

SPLIT_FILE = "split_zhou_Tiny.json"
OPTIONS = {"images": "images", "split": SPLIT_FILE}


def png(colour: str = "red", size: tuple[int, int] = (8, 8)) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", size, colour).save(buffer, format="PNG")
    return buffer.getvalue()


def entries(classes: list[str], counts: dict[str, int]) -> dict[str, list[list[Any]]]:
    """Return a split of `counts[split]` images a class, the last class first."""
    return {
        split: [
            [f"{name}/{split}_{number}.png", label, name]
            for label, name in reversed(list(enumerate(classes)))
            for number in range(count)
        ]
        for split, count in counts.items()
    }


def write_coop(root: Path, split: Any, options: dict[str, Any] | None = None) -> DatasetSpec:
    folder = root / "tiny"
    (folder / "images").mkdir(parents=True, exist_ok=True)
    text = split if isinstance(split, str) else json.dumps(split)
    (folder / SPLIT_FILE).write_text(text)
    return DatasetSpec("tiny", "coop", "tiny", ("a photo of a {}.",), options or OPTIONS)


def write_images(root: Path, split: dict[str, list[list[Any]]]) -> None:
    for rows in split.values():
        for path, _, _ in rows:
            file = root / "tiny" / "images" / path
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(png())
