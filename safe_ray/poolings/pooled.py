"""Pooling dense maps with trained heads, in memory-bounded pieces."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from safe_ray.poolings.base import HeadState, Pooling

# More maps at once than this leave a CPU's caches; fewer read the weights too often.
_MAPS_AT_ONCE = 64
# What a GPU holds at once, and what shares each batch of maps.
_HEADS_AT_ONCE = 8


@torch.no_grad()
def pool_with_heads(
    heads: Sequence[HeadState], pooling: Pooling, maps: Tensor, device: torch.device
) -> Tensor:
    """Pool every map with every head.

    Args:
        heads: K states with the tower's parameter names, on any device.
        pooling: what they are states of.
        maps: `[N, L, C]` dense maps, on any device and in any floating-point type.
        device: where to compute.

    Returns:
        `[K, N, D]` float32 features on `device`, as the pooling returns them.
    """
    pooled = []
    for first in range(0, len(heads), _HEADS_AT_ONCE):
        group = heads[first : first + _HEADS_AT_ONCE]
        state = {
            name: torch.stack([head[name].to(device, torch.float32) for head in group])
            for name in group[0]
        }
        parts = [
            pooling.pool(pooling.prepare(part.to(device)), state)
            for part in maps.split(_MAPS_AT_ONCE)
        ]
        pooled.append(torch.cat(parts, dim=1))
    return torch.cat(pooled)
