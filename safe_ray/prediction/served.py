"""A head as a model of MLflow's: a table of images in, their classes out.

    mlflow.pyfunc.load_model("models:/<name>@best").predict(pandas.DataFrame({"image": [content]}))

It is plain PyTorch in the process that loads it: no cluster, no store, and no network where the
backbone's weights lie beside the head, in the package, or in open_clip's cache.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
import torch
from mlflow.pyfunc import PythonModel

from safe_ray.data.images import BadImageError, decode_image
from safe_ray.data.views import evaluation_view
from safe_ray.errors import InputError
from safe_ray.files import is_uri, resolve_path
from safe_ray.heads.artifact import load_card
from safe_ray.prediction.images import Picture
from safe_ray.prediction.pictures import batches, read_pixels
from safe_ray.prediction.predictor import Predictor
from safe_ray.prediction.rows import columns, predictions

if TYPE_CHECKING:
    from torch import Tensor

HEAD = "head"
"""The artifact with the head's files."""
IMAGE, PATH = "image", "path"
"""The columns of what is asked: an image's bytes, or where it lies."""
TOP, ALPHA = "top", "alpha"
"""The parameters: how many classes each image gets, and another blend; -1 is the chosen one."""

_BATCH = 64
_SERVING = "_MLFLOW_IS_IN_SERVING_ENVIRONMENT"


class HeadModel(PythonModel):
    """Classifies the images of a table, some at a time."""

    def __init__(self) -> None:
        self._predictor: Predictor | None = None

    def load_context(self, context: Any) -> None:
        """Read the head, and the backbone that it names.

        Raises:
            InputError: see `Predictor.load`.
        """
        folder = Path(context.artifacts[HEAD])
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        card = load_card(folder)
        # Whoever loads a model of MLflow's runs its code; the modules of its method are part of it.
        named = (card["method"].get("module"), card["backbone"].get("pooling"))
        trusted = [module for module in named if module]
        self._predictor = Predictor.load(folder, device, trusted=trusted)

    def predict(
        self, context: Any, model_input: pd.DataFrame, params: dict[str, Any] | None = None
    ) -> pd.DataFrame:
        """Return a row an image: `class`, `probability` and `error`, and more classes with `top`.

        Args:
            context: MLflow's; not needed any more.
            model_input: a DataFrame with a column `image` (bytes), or `path` (files on this
                machine, which a server does not take).
            params: `top` and `alpha`.

        Raises:
            InputError: there is neither column, or a parameter is out of its range.
        """
        if self._predictor is None:
            raise RuntimeError("the model has not been loaded")
        asked = params or {}
        predictor = _at(self._predictor, float(asked.get(ALPHA, -1.0)))
        top = int(asked.get(TOP, 1))
        if top < 1:
            raise InputError(f"{TOP} is {top}, and must be 1 or more.")
        return _classify(predictor, _contents(model_input), min(top, len(predictor.class_names)))


def _at(predictor: Predictor, alpha: float) -> Predictor:
    if alpha < 0:
        return predictor
    if ALPHA not in predictor.at:
        raise InputError(f"{predictor.card['method']['title']} has no {ALPHA}: leave it out.")
    if alpha > 1:
        raise InputError(f"{ALPHA} is {alpha:g}, and must lie between 0 (zero-shot) and 1 (tuned).")
    return replace(predictor, at={**predictor.at, ALPHA: alpha})


def _contents(table: pd.DataFrame) -> list[bytes | str]:
    """Return the bytes, or else the place, of each row."""
    filled = {
        name: [value if isinstance(value, bytes | str) else None for value in table[name]]
        for name in (IMAGE, PATH)
        if name in table.columns
    }
    nothing = [None] * len(table)
    rows = zip(filled.get(IMAGE, nothing), filled.get(PATH, nothing), strict=True)
    return [_content(image, path) for image, path in rows]


def _content(image: bytes | str | None, path: bytes | str | None) -> bytes | str:
    if isinstance(image, bytes):
        return image
    if not isinstance(path, str):
        raise InputError(
            f"A row has neither an {IMAGE} (its bytes) nor a {PATH}: give each row one of them."
        )
    if os.environ.get(_SERVING) == "true":
        # Whoever may ask a server need not be allowed to read the files of its machine.
        raise InputError(f"A served model takes no {PATH}: send the bytes as {IMAGE}.")
    return path if is_uri(path) else str(resolve_path(path))


def _classify(predictor: Predictor, contents: Sequence[bytes | str], top: int) -> pd.DataFrame:
    rows: list[dict[str, Any]] = []
    for some in batches(contents, _BATCH):
        read = [_pixels(content, predictor) for content in some]
        errors = [one if isinstance(one, str) else None for one in read]
        good = [one for one in read if not isinstance(one, str)]
        names = predictor.class_names
        known = predictor.probabilities(torch.stack(good)) if good else torch.empty(0, len(names))
        for said in predictions([""] * len(some), errors, known, names, top):
            values = [value for pair in said.top for value in pair] or [None] * 2 * top
            row = dict(zip(_answers(top), [*values[:2], said.error, *values[2:]], strict=True))
            rows.append(row)
    table = pd.DataFrame(rows, columns=_answers(top))
    return table.astype({"class": object, "error": object})


def _answers(top: int) -> list[str]:
    return columns(top)[1:]


def _pixels(content: bytes | str, predictor: Predictor) -> Tensor | str:
    if isinstance(content, str):
        return read_pixels(Picture(content, content), predictor.preprocessing)
    try:
        return evaluation_view(decode_image(content), predictor.preprocessing)
    except BadImageError as error:
        return str(error)
