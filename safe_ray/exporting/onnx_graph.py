"""One ONNX graph from pixels to probabilities."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from safe_ray.exporting.graph import LOGITS, PIXELS, PROBABILITIES, ExportedModel, refusing, traced
from safe_ray.prediction.bundle_files import GRAPH

if TYPE_CHECKING:
    from safe_ray.prediction.predictor import Predictor

OPSET = 23
"""Of 2025: it has what the graph needs, and onnxruntime has it since 1.23."""

HOW_TO_LOAD = (
    "import json, onnxruntime",
    "bundle = json.load(open('bundle.json'))",
    f"session = onnxruntime.InferenceSession('{GRAPH}')",
    "# pixels: numpy uint8 [N, 3, S, S], RGB, resized and cropped as bundle['preprocessing'] says, "
    "and not normalised: the graph does that",
    f"probabilities, logits = session.run(['{PROBABILITIES}', '{LOGITS}'], {{'{PIXELS}': pixels}})",
)


def write(folder: Path, predictor: Predictor) -> Callable[[Tensor], Tensor]:
    """Write the graph, and return what onnxruntime makes of the file: pixels to logits.

    Raises:
        InputError: see `traced`.
    """
    import onnxruntime

    predictor.backbone.trunk.to(memory_format=torch.contiguous_format)
    program = traced(ExportedModel(predictor), predictor.preprocessing.size)
    with refusing("this method"), _quiet():
        graph = torch.onnx.export(
            program,
            dynamo=True,
            input_names=[PIXELS],
            output_names=[PROBABILITIES, LOGITS],
            # The name that the graph gets for the number of images, which is free already.
            dynamic_shapes={PIXELS: {0: "batch"}},
            opset_version=OPSET,
            verbose=False,
        )
        assert graph is not None
        graph.save(folder / GRAPH, external_data=False)
    session = onnxruntime.InferenceSession(str(folder / GRAPH), providers=["CPUExecutionProvider"])

    def run(pixels: Tensor) -> Tensor:
        (found,) = session.run([LOGITS], {PIXELS: pixels.numpy()})
        return torch.from_numpy(found)

    return run


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep the exporter from telling of its own progress and its own future."""
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
