"""Towers without an attention pooling of a known kind: their output projection alone.

ConvNeXt, FastViT, Swin, ViTamin and vision transformers that average their tokens end in one linear
projection of a pooled feature. The dense map is that feature, one token `[N, 1, C]`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor, nn

from safe_ray.poolings.base import PROJECTION, Cut, HeadState
from safe_ray.poolings.last_block import check_grid
from safe_ray.poolings.trunk import FrozenTrunk

if TYPE_CHECKING:
    from safe_ray.heads.bank import Bank
    from safe_ray.heads.optimiser import BankOptimiser
    from safe_ray.heads.step import Step

OPEN_CLIPS = "proj"
"""The projection of open_clip's own vision transformers, a parameter and no layer."""

# Where timm's towers have their last linear layer, the one that comes last first.
_LAST = ("head.proj", "head.mlp.fc2", "trunk.head", "trunk.head.fc")


@dataclass(frozen=True)
class Projection:
    """The last linear layer of a tower.

    Its state is the layer's own: `proj` `[C, D]` of open_clip's vision transformers, and elsewhere
    `<name>.weight` `[D, C]`, with `<name>.bias` `[D]` where it is.

    Attributes:
        name: of the layer in the tower.
    """

    groups: ClassVar[tuple[str, ...]] = (PROJECTION,)
    inert: ClassVar[frozenset[str]] = frozenset()
    projection: ClassVar[str] = PROJECTION
    alone: ClassVar[str] = "has no attention pooling that can be tuned, but an output projection"

    name: str

    @classmethod
    def matches(cls, visual: nn.Module) -> bool:
        """See `Pooling`."""
        return last_layer(visual) is not None

    @classmethod
    def cut(cls, visual: nn.Module, image_size: int) -> Cut:
        """See `Pooling`."""
        from open_clip.transformer import VisionTransformer

        name = last_layer(visual)
        assert name is not None
        if isinstance(visual, VisionTransformer):
            check_grid(visual, image_size)
            state = {name: visual.proj.detach()}
            width, embed_dim = state[name].shape
            visual.proj = None
        else:
            layer = visual.get_submodule(name)
            state = {f"{name}.{part}": tensor.detach() for part, tensor in layer.named_parameters()}
            embed_dim, width = state[f"{name}.weight"].shape
            visual.set_submodule(name, nn.Identity())
        # Of such a tower the modules' own description is all that tells two functions apart.
        remaining = PooledTrunk(visual)
        return Cut(
            trunk=remaining,
            pooling=cls(name),
            state=state,
            prefix="visual.",
            tokens=1,
            width=int(width),
            embed_dim=int(embed_dim),
            identity={"tower": str(remaining), "image_size": image_size},
        )

    @classmethod
    def group_of(cls, name: str) -> str | None:
        """See `safe_ray.poolings.base.Grouped`."""
        return PROJECTION

    def prepare(self, maps: Tensor) -> Tensor:
        """See `Pooling`."""
        return maps.to(torch.promote_types(maps.dtype, torch.float32))

    def pool(self, tokens: Tensor, state: HeadState) -> Tensor:
        """See `Pooling`."""
        features = tokens[:, 0]
        if self.name in state:
            return features @ state[self.name]
        weight, bias = state[f"{self.name}.weight"], _bias(state, self.name)
        projected = features @ weight.transpose(1, 2)
        return projected if bias is None else projected + bias[:, None]

    def attention(self, tokens: Tensor, state: HeadState) -> Tensor:
        """See `Pooling`: there is one token, and no head of attention chooses among others."""
        candidates = len(next(iter(state.values())))
        return tokens.new_ones(candidates, len(tokens), 1, 1)

    def activation_bytes(self, state: HeadState, batch_size: int) -> int:
        """See `Pooling`."""
        return 4 * batch_size * sum(next(iter(state.values())).shape[-2:])

    def step(self, bank: Bank, optimiser: BankOptimiser) -> Step | None:
        """See `Pooling`: autograd finds the gradients."""
        return None


POOLING = Projection


class PooledTrunk(FrozenTrunk):
    """A tower without its last layer: images `[N, 3, S, S]` -> one token `[N, 1, C]`."""

    def forward(self, images: Tensor) -> Tensor:
        """Return the pooled features of the images, contiguous `[N, 1, C]`."""
        pooled = self.visual(images)
        # A tower of a captioner returns its tokens, too.
        features: Tensor = pooled[0] if isinstance(pooled, tuple) else pooled
        return features.unsqueeze(1).contiguous()


def last_layer(visual: nn.Module) -> str | None:
    """Return the name of the linear layer that a tower ends in, or None if it ends otherwise."""
    # Workers have a pooling by its name, and open_clip would be half of their start.
    from open_clip.timm_model import TimmModel
    from open_clip.transformer import VisionTransformer

    if isinstance(visual, VisionTransformer):
        return OPEN_CLIPS if visual.proj is not None else None
    if not isinstance(visual, TimmModel):
        return None
    layers = dict(visual.named_modules())
    # What follows the trunk comes last, wherever there is something.
    names = [name for name in _LAST if name.startswith("head.") == bool(len(visual.head))]
    return next((name for name in names if type(layers.get(name)) is nn.Linear), None)


def _bias(state: Mapping[str, Tensor], name: str) -> Tensor | None:
    return state.get(f"{name}.bias")
