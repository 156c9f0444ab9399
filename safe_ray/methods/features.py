"""The features of some samples, as methods see them: pooled by the original or by a tuned head."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from safe_ray.poolings.base import HeadState, Pooling
from safe_ray.poolings.pooled import pool_with_heads


class Features(Protocol):
    """N samples in V views each; view 0 is the evaluation view, and the only one to judge by."""

    @property
    def original(self) -> Tensor:
        """`[N, V, D]` float32, as the original pooling returns them (not normalised)."""
        ...

    def pooled(self, heads: Sequence[HeadState]) -> Tensor:
        """Pool with K heads: `[K, N, V, D]` float32, not normalised."""
        ...


class MappedFeatures:
    """Features pooled from dense maps when they are asked for.

    Args:
        maps: `[N, V, L, C]` of any floating-point dtype, on any device.
        pooling: what the heads are states of.
        original: the original head.
        device: where to compute, and where the features are.
    """

    def __init__(
        self, maps: Tensor, pooling: Pooling, original: HeadState, device: torch.device
    ) -> None:
        self._maps = maps
        self._pooling = pooling
        self._original_head = original
        self._device = device
        self._original: Tensor | None = None

    @property
    def original(self) -> Tensor:
        """See `Features`."""
        if self._original is None:
            self._original = self.pooled([self._original_head])[0]
        return self._original

    def pooled(self, heads: Sequence[HeadState]) -> Tensor:
        """See `Features`."""
        maps = self._maps.flatten(0, 1)
        pooled = pool_with_heads(heads, self._pooling, maps, self._device)
        return pooled.unflatten(1, self._maps.shape[:2])


@dataclass(frozen=True)
class GivenFeatures:
    """Features that are there already, for methods that tune no pooling.

    Attributes:
        original: `[N, V, D]`, as the original pooling returned them.
        tuned: `[N, V, D]` of each head, by the identity of its state.
    """

    original: Tensor
    tuned: Mapping[int, Tensor] | None = None

    def pooled(self, heads: Sequence[HeadState]) -> Tensor:
        """See `Features`."""
        tuned = self.tuned or {}
        return torch.stack([tuned[id(head)] for head in heads])
