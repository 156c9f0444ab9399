"""A predictor as one module from pixels to probabilities, which graphs are made of."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from safe_ray.data.locations import first_line
from safe_ray.errors import InputError
from safe_ray.methods.base import function_of
from safe_ray.methods.features import Features
from safe_ray.poolings.base import HeadState, Pooling, pool_in_graph

if TYPE_CHECKING:
    from collections.abc import Iterator

    from safe_ray.prediction.predictor import Predictor

PIXELS, LOGITS, PROBABILITIES = "pixels", "logits", "probabilities"


class GraphFeatures:
    """Features of dense maps, pooled by operations that a graph can hold.

    Args:
        maps: `[N, L, C]` float32.
        pooling: what the heads are states of.
        original: the original head.
        stacked: the heads' states with a leading axis of 1, by their identity; heads that are not
            in it yet are put there, so that a graph which is made later has them as constants.
    """

    def __init__(
        self,
        maps: Tensor,
        pooling: Pooling,
        original: HeadState,
        stacked: dict[int, tuple[HeadState, HeadState]],
    ) -> None:
        self._maps = maps
        self._pooling = pooling
        self._head = original
        self._stacked = stacked
        self._original: Tensor | None = None

    @property
    def original(self) -> Tensor:
        """See `safe_ray.methods.features.Features`."""
        if self._original is None:
            self._original = self.pooled([self._head])[0]
        return self._original

    def pooled(self, heads: Sequence[HeadState]) -> Tensor:
        """See `safe_ray.methods.features.Features`."""
        each = [pool_in_graph(self._pooling, self._maps, self._stack(head)) for head in heads]
        return torch.cat(each).unsqueeze(2)

    def _stack(self, head: HeadState) -> HeadState:
        if id(head) not in self._stacked:
            stacked = {
                name: tensor.detach().to(self._maps.device, torch.float32).unsqueeze(0)
                for name, tensor in head.items()
            }
            # The head is kept, too: its identity must not pass on to another.
            self._stacked[id(head)] = head, stacked
        return self._stacked[id(head)][1]


class ExportedModel(nn.Module):
    """Pixels to logits and calibrated probabilities: what a `Predictor` does, as a pure function.

    As there, dense maps go through float16, for a head is trained and judged on such maps.

    Args:
        predictor: on a CPU; its trunk becomes a part of the module.

    Raises:
        InputError: the method's logits cannot be had of the pooled features of one view alone.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, predictor: Predictor) -> None:
        super().__init__()
        backbone, preprocessing = predictor.backbone, predictor.preprocessing
        self.trunk = backbone.trunk
        self.register_buffer("mean", torch.tensor(preprocessing.mean).view(3, 1, 1))
        self.register_buffer("std", torch.tensor(preprocessing.std).view(3, 1, 1))
        self._pooling, self._head = backbone.pooling, backbone.state
        self._temperature = predictor.temperature
        self._stacked: dict[int, tuple[HeadState, HeadState]] = {}
        self._function: Callable[[Features], Tensor] = function_of(predictor.fitted, predictor.at)
        self.eval()
        # What a method finds out at its first image, it finds out here: the graph has the answer.
        with refusing(str(predictor.card["method"].get("title", "this method"))):
            self._logits(torch.zeros(2, backbone.tokens, backbone.width))

    def train(self, mode: bool = True) -> ExportedModel:
        """Stay in eval mode, whatever `mode` asks for."""
        return super().train(False)

    def forward(self, pixels: Tensor) -> dict[str, Tensor]:
        """Return `probabilities` and `logits`, float32 `[N, classes]`.

        Args:
            pixels: uint8 `[N, 3, S, S]`, as `safe_ray.data.views.evaluation_view` makes them.
        """
        images = (pixels.to(torch.float32) / 255 - self.mean) / self.std
        maps = self.trunk(images).to(torch.float16).to(torch.float32)
        logits = self._logits(maps)
        return {PROBABILITIES: torch.softmax(logits / self._temperature, -1), LOGITS: logits}

    def _logits(self, maps: Tensor) -> Tensor:
        features = GraphFeatures(maps, self._pooling, self._head, self._stacked)
        return self._function(features).to(torch.float32)


def traced(model: ExportedModel, size: int) -> Any:
    """Return the `torch.export.ExportedProgram` of a model; the number of images is free.

    Args:
        model: what to trace.
        size: S, the side of the images.

    Raises:
        InputError: the model has a step that a graph cannot hold.
    """
    pixels = torch.zeros(2, 3, size, size, dtype=torch.uint8)
    batch = torch.export.Dim("batch")
    with refusing("this method"), torch.no_grad():
        return torch.export.export(model, (pixels,), dynamic_shapes={PIXELS: {0: batch}})


@contextmanager
def refusing(method: str) -> Iterator[None]:
    """Make a sentence of whatever goes wrong while a method is traced: it may be anybody's.

    Raises:
        InputError: something went wrong.
    """
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        raise InputError(
            f"The logits of {method} cannot be written as a graph ({first_line(error)}): use the "
            "head with python -m safe_ray.predict."
        ) from error
