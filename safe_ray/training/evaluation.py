"""Pooling dense maps with trained heads, in memory-bounded pieces, and their alpha rows."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from safe_ray.heads.bank import POOLING_PARAMETERS, HeadState, with_mean_token
from safe_ray.heads.blending import AlphaRowSums, sum_alpha_row
from safe_ray.heads.single import Room, Weights, Workspace, pool_head

# More maps at once than this leave a CPU's caches; fewer read the weights too often.
_MAPS_AT_ONCE = 64
# What a GPU holds at once, and what shares each batch of maps.
_HEADS_AT_ONCE = 8


@torch.no_grad()
def pool_with_heads(
    heads: Sequence[HeadState], num_heads: int, maps: Tensor, device: torch.device
) -> Tensor:
    """Pool every map with every head.

    Args:
        heads: K states with open_clip's parameter names, on any device.
        num_heads: attention heads of the pooling.
        maps: `[N, L, C]` dense maps of view 0, on any device and in any floating-point type.
        device: where to compute.

    Returns:
        `[K, N, D]` float32 features on `device`, as the pooling returns them.
    """
    workspace = Workspace()
    pooled = []
    for first in range(0, len(heads), _HEADS_AT_ONCE):
        group = [
            Weights.of(
                {name: head[name].to(device, torch.float32) for name in POOLING_PARAMETERS},
                num_heads,
            )
            for head in heads[first : first + _HEADS_AT_ONCE]
        ]
        parts = []
        for part in maps.split(_MAPS_AT_ONCE):
            tokens = with_mean_token(part.to(device))
            room = Room(tokens, num_heads, workspace)
            parts.append(torch.stack([pool_head(tokens, weights, room) for weights in group]))
        pooled.append(torch.cat(parts, dim=1))
    return torch.cat(pooled)


def evaluate_alpha_rows(
    heads: Sequence[HeadState],
    original: HeadState,
    num_heads: int,
    maps: Tensor,
    labels: Tensor,
    classifier: Tensor,
    logit_scale: float,
    alphas: tuple[float, ...],
) -> AlphaRowSums:
    """Evaluate K heads at every alpha on the maps `[N, L, C]` of labelled samples `[N]`.

    The computation runs on the classifier's device.
    """
    device = classifier.device
    tuned = pool_with_heads(heads, num_heads, maps, device)
    base = pool_with_heads([original], num_heads, maps, device)[0]
    return sum_alpha_row(tuned, base, classifier, labels.to(device), logit_scale, alphas)
