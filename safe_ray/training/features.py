"""Features of samples whose dense maps lie in the store, pooled when a method asks for them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from safe_ray.features.store import FeatureStore
from safe_ray.poolings.base import HeadState, Pooling
from safe_ray.poolings.pooled import pool_with_heads

# Maps that are read at once.
_MAPS_AT_ONCE = 512
# Maps of so few bytes are kept: a blend of weights pools them once for each of its points.
_KEPT_BYTES = 256 * 2**20


class StoredFeatures:
    """Features of N samples in V views (see `safe_ray.methods.features.Features`).

    Args:
        store: has the dense maps.
        samples: their digests.
        views: which views of them; the first is the evaluation view.
        pooling: what the heads are states of.
        original: the original head.
        device: where to compute, and where the features are.
        heads: which heads will be asked for: the first question pools with all of them, in one pass
            over the maps, and what they give is kept.
    """

    def __init__(
        self,
        store: FeatureStore,
        samples: Sequence[str],
        views: Sequence[int],
        pooling: Pooling,
        original: HeadState,
        device: torch.device,
        heads: Sequence[HeadState] = (),
    ) -> None:
        self._store = store
        self._samples = samples
        self._views = views
        self._pooling = pooling
        self._original_head = original
        self._device = device
        self._heads = {id(head): head for head in heads}
        self._pooled: dict[int, Tensor] = {}
        self._original: Tensor | None = None
        self._maps: list[Tensor] | None = None

    @property
    def original(self) -> Tensor:
        """See `Features`."""
        if self._original is None:
            self._original = self._pool([self._original_head])[0]
        return self._original

    def pooled(self, heads: Sequence[HeadState]) -> Tensor:
        """See `Features`."""
        if any(id(head) not in self._heads for head in heads):
            return self._pool(heads)
        if not self._pooled:
            together = self._pool(list(self._heads.values()))
            self._pooled = dict(zip(self._heads, together, strict=True))
        return torch.stack([self._pooled[id(head)] for head in heads])

    def _pool(self, heads: Sequence[HeadState]) -> Tensor:
        parts = [
            pool_with_heads(heads, self._pooling, maps.flatten(0, 1), self._device).unflatten(
                1, maps.shape[:2]
            )
            for maps in self._read()
        ]
        return torch.cat(parts, dim=1)

    def _read(self) -> Iterator[Tensor]:
        """Yield the maps `[n, V, L, C]` in pieces."""
        if self._maps is not None:
            yield from self._maps
            return
        rows = max(1, _MAPS_AT_ONCE // len(self._views))
        total = len(self._samples) * len(self._views) * self._store.bytes_per_row
        kept: list[Tensor] = []
        for first in range(0, len(self._samples), rows):
            maps = torch.from_numpy(
                self._store.read(self._samples[first : first + rows], self._views)
            )
            if total <= _KEPT_BYTES:
                kept.append(maps)
            yield maps
        self._maps = kept or None
