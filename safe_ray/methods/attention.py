"""Where a fitted method looks: the attention of its pooling over the map, beside the original's."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from safe_ray.errors import InputError
from safe_ray.methods.features import Features, MappedFeatures
from safe_ray.poolings.base import HeadState, Pooling, alone_of, leading_of

if TYPE_CHECKING:
    from safe_ray.methods.base import Fitted

# As for pooling: more maps at once leave a CPU's caches.
_MAPS_AT_ONCE = 64


@dataclass(frozen=True, eq=False)
class Look:
    """Where two poolings look in N images.

    Attributes:
        original: float32 `[N, h, w]` on the CPU: how much each place of the evaluation view counts
            in what the original pooling returns, the mean over its heads of attention. It adds up
            to 1 an image, or to less where a class token has the rest.
        tuned: the same of the pooling that the method uses. It is the original one for a method
            that tunes no pooling.
        logits: float32 `[N, classes]` on the CPU, of the method.
    """

    original: Tensor
    tuned: Tensor
    logits: Tensor


@torch.no_grad()
def look_at(
    maps: Tensor,
    fitted: Fitted,
    at: Mapping[str, float],
    pooling: Pooling,
    original: HeadState,
    device: torch.device,
) -> Look:
    """Classify dense maps, and return where the poolings look in them.

    Which pooling a method uses is not asked of the method: it is the one that it has pool the maps
    when it classifies them. So a method that blends weights shows the weights in between.

    Args:
        maps: `[N, L, C]` dense maps of view 0, of any floating-point dtype, on any device.
        fitted: the method.
        at: a value for each of its knobs.
        pooling: what the states are of.
        original: the original head.
        device: where to compute.

    Raises:
        InputError: the pooling cannot say where it looks, or its map is no square.
    """
    alone = alone_of(pooling)
    if alone:
        raise InputError(f"The model {alone}, so that there is no picture of where it looks.")
    if getattr(pooling, "attention", None) is None:
        raise InputError(
            f"The pooling of {type(pooling).__module__} has no attention(), which says where it "
            "looks: add it, as safe_ray.poolings.base.Pooling describes it."
        )
    places = maps.shape[1] - leading_of(pooling)
    side = math.isqrt(places)
    if side * side != places:
        raise InputError(
            f"A map of {places} tokens is no square: there is no picture of its attention."
        )
    watched = _Watched(MappedFeatures(maps.unsqueeze(1), pooling, original, device))
    logits = fitted.logits(watched, at).float().cpu()
    before = _weights(maps, pooling, original, device)
    after = before if watched.head is None else _weights(maps, pooling, watched.head, device)
    shape = (len(maps), side, side)
    return Look(before.reshape(shape), after.reshape(shape), logits)


def _weights(maps: Tensor, pooling: Pooling, head: HeadState, device: torch.device) -> Tensor:
    """Return the weights of the grid's places, the mean over the heads of attention, on the CPU."""
    state = {name: tensor.to(device, torch.float32).unsqueeze(0) for name, tensor in head.items()}
    parts = [
        pooling.attention(pooling.prepare(part.to(device)), state)[0].mean(1).cpu()
        for part in maps.split(_MAPS_AT_ONCE)
    ]
    weights = torch.cat(parts) if parts else torch.empty(0, maps.shape[1])
    return weights[:, leading_of(pooling) :]


class _Watched:
    """Features that remember the head with which they were pooled last."""

    def __init__(self, features: Features) -> None:
        self._features = features
        self.head: HeadState | None = None

    @property
    def original(self) -> Tensor:
        """See `Features`."""
        return self._features.original

    def pooled(self, heads: Sequence[HeadState]) -> Tensor:
        """See `Features`."""
        self.head = heads[-1]
        return self._features.pooled(heads)
