"""What hand-written steps share: memory that is used again, and gradients block by block.

`safe_ray.heads.step.FusedStep` drives a pooling's written-out derivative with these.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import Protocol

from torch import Tensor

# A block of gradients is still in the core's own cache when it is used (its weights and moments are
# not), and is large enough for a product to run at full speed.
BLOCK_BYTES = 2**20


class Workspace:
    """Memory for intermediates that is used again at every step, by name."""

    def __init__(self) -> None:
        self._buffers: dict[str, Tensor] = {}

    def take(
        self, name: str, shape: tuple[int, ...], like: Tensor, start: int = 0, capacity: int = 0
    ) -> Tensor:
        """Return an uninitialised tensor of that shape; it is valid until `name` is taken again.

        Args:
            name: of the memory.
            shape: of the tensor.
            like: what has its dtype and device.
            start: the first element in the memory, for several tensors in one.
            capacity: how many elements the memory has at least.
        """
        end = start + math.prod(shape)
        buffer = self._buffers.get(name)
        if buffer is None or len(buffer) < end or buffer.dtype != like.dtype:
            buffer = self._buffers[name] = like.new_empty(max(end, capacity))
        return buffer[start:end].view(shape)


class Gradients(Protocol):
    """Where a backward pass puts the gradients of one head."""

    layers: frozenset[str]
    """The layers of which a gradient is wanted (the `groups` of a pooling)."""

    def blocks(self, name: str, unit: int = 0) -> Iterator[tuple[slice, Tensor]]:
        """Yield the rows of a parameter in blocks, each with the memory to write its gradient to.

        A block counts as written when the next one is asked for. A parameter that is not wanted
        has no blocks.

        Args:
            name: of a parameter of the pooling.
            unit: rows that stay together: they get an axis of their own, and the slices count
                them. 0 for none.
        """
        ...


def layers_of(names: Iterable[str]) -> frozenset[str]:
    """Return the layers that parameters belong to."""
    return frozenset(name.split(".")[0] for name in names)


def shape_block(tensor: Tensor, unit: int) -> Tensor:
    """View a block of rows as `Gradients.blocks` yields it."""
    return tensor.view(-1, unit, *tensor.shape[1:]) if unit else tensor


def row_blocks(parameter: Tensor, unit: int) -> list[slice]:
    """Cut the rows of a parameter into blocks, multiples of `unit`, of about `BLOCK_BYTES`.

    A bias is one block.
    """
    rows = len(parameter)
    if parameter.ndim == 1:
        return [slice(0, rows)]
    least = max(1, unit)
    least_bytes = parameter.numel() * parameter.element_size() // rows * least
    size = max(1, BLOCK_BYTES // least_bytes) * least
    return [slice(start, min(rows, start + size)) for start in range(0, rows, size)]
