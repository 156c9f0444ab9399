"""`data=<location>`: somebody's own images without a YAML file, and what is assumed about them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from safe_ray.config import DatasetConfig

PHOTO_TEMPLATES = (
    "a photo of a {}.",
    "a photo of the {}.",
    "a close-up photo of a {}.",
    "a cropped photo of a {}.",
)


def looks_like_location(text: str) -> bool:
    """Return whether the value of `data=` is a place where images are, and not a YAML file."""
    return "/" in text or text.startswith(("~", "$", ".")) or (text != "" and Path(text).exists())


def dataset_at(location: str, overrides: Sequence[str]) -> DatasetConfig:
    """Return the data set at a location, its format found out by looking.

    Args:
        location: a folder, a file or a URI.
        overrides: what else was asked for: what the person chose need not be said.

    Raises:
        InputError: there is nothing there that any reader understands.
    """
    from safe_ray.data.locations import locate
    from safe_ray.data.readers.detect import detect_format

    path = locate(location, Path.cwd())
    form = detect_format(path)
    said = [f"{path} is read as format {form!r}"]
    chosen = {override.lstrip("+").partition("=")[0].partition(".")[0] for override in overrides}
    if not any(override.startswith("data.prompts") for override in overrides):
        said.append(f"the prompts are {', '.join(map(repr, PHOTO_TEMPLATES))}")
    if "backbone" not in chosen:
        said.append(
            "the backbone is the one that comes with the package, which was trained on drawings "
            "(backbone=rn50 is OpenAI's, trained on photos; its weights are downloaded)"
        )
    return DatasetConfig(
        name=name_of(path),
        format=form,
        path=path,
        templates=PHOTO_TEMPLATES,
        ensemble="simple",
        on_change="redraw",
        notes=(f"{'; '.join(said)}.",),
    )


def name_of(path: str) -> str:
    """Return a name for the data set at a path that is safe as the name of a folder."""
    last = re.split(r"[/\\]", path.rstrip("/\\"))[-1] or "own"
    stem = last.rsplit(".", 1)[0] if not Path(path).is_dir() else last
    safe = re.sub(r"[^A-Za-z0-9._-]+", "_", stem).strip("._-")
    return safe[:80] or "own"
