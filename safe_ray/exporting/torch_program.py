"""A `torch.export` program: one file that `torch.export.load` alone reads and runs."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from safe_ray.exporting.graph import LOGITS, ExportedModel, traced
from safe_ray.prediction.bundle_files import PROGRAM

if TYPE_CHECKING:
    from safe_ray.prediction.predictor import Predictor

HOW_TO_LOAD = (
    "import json, torch",
    "bundle = json.load(open('bundle.json'))",
    f"program = torch.export.load('{PROGRAM}').module()",
    "# pixels: uint8 [N, 3, S, S], RGB, resized and cropped as bundle['preprocessing'] says, and "
    "not normalised: the program does that",
    "found = program(pixels)",
    "probabilities, logits = found['probabilities'], found['logits']",
)


def write(folder: Path, predictor: Predictor) -> Callable[[Tensor], Tensor]:
    """Write the program, read it again, and return what it does: pixels to logits.

    Raises:
        InputError: see `traced`.
    """
    program = traced(ExportedModel(predictor), predictor.preprocessing.size)
    with warnings.catch_warnings():
        # Two constants that are views of one tensor are each written whole, and torch says so.
        warnings.simplefilter("ignore", UserWarning)
        torch.export.save(program, folder / PROGRAM)
        module = torch.export.load(folder / PROGRAM).module()

    def run(pixels: Tensor) -> Tensor:
        return module(pixels)[LOGITS]

    return run
