"""Multi-head attention pooling of a learnt latent: SigLIP, SigLIP 2, PE-Core, and their like.

The pooling is timm's `AttentionPoolLatent` in a tower whose pool is `map`. Its query is one latent
that is the same for every image (see `constant_query`). A block's MLP follows it, and in PE-Core a
linear head:

    q = W_q latent + b_q,  v = attention of q to the tokens,  y = W_p v + b_p
    z = y + mlp(norm(y)),  embedding = W_h z + b_h, or z itself
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor, nn

from safe_ray.poolings.base import QUERIES, Cut, HeadState
from safe_ray.poolings.constant_query import absorb, attend, gather, project
from safe_ray.poolings.latent_step import POOL, LatentHead
from safe_ray.poolings.layers import ACTIVATIONS, activation_of, layer_norm, linear
from safe_ray.poolings.trunk import TokenTrunk

if TYPE_CHECKING:
    from open_clip.timm_model import TimmModel

    from safe_ray.heads.bank import Bank
    from safe_ray.heads.optimiser import BankOptimiser
    from safe_ray.heads.step import Step

_LAYERS = ("q", "kv", "proj", "norm", "mlp.fc1", "mlp.fc2")
_NAMES = frozenset(
    {"latent", *(f"{layer}.{kind}" for layer in _LAYERS for kind in ("weight", "bias"))}
)
# Intermediates that one head keeps between forward and backward: of [N, H, L], of [N, H, C], of
# [N, hidden], and of [N, C].
_WEIGHTS, _GATHERED, _HIDDEN, _ROWS = 3, 2, 3, 8


@dataclass(frozen=True)
class LatentAttention:
    """timm's `AttentionPoolLatent` with absorbed projections, and the head that follows it.

    Its state: attn_pool.latent `[1, 1, E]`, attn_pool.{q,proj}.weight `[C, C]`,
    attn_pool.kv.weight `[2 C, C]` (the keys' half first), attn_pool.norm.weight `[C]`,
    attn_pool.mlp.fc1.weight `[M, C]`, attn_pool.mlp.fc2.weight `[C, M]`, a bias of each; and
    head.weight `[D, C]` and head.bias `[D]` where there is a head.

    Attributes:
        num_heads: attention heads; C is a multiple of it.
        tokens: L, of a map.
        leading: how many of them, the first, are no place of the image, such as a class token.
        activation: of the MLP: gelu, gelu_tanh or quick_gelu.
        epsilon: of the norm.
        projection: the part that is the output projection: head, or empty if there is none.
    """

    groups: ClassVar[tuple[str, ...]] = ("latent", "q", "kv", "proj", "norm", "mlp", "head")
    # The keys' half of kv.bias has no gradient either, but the values' half has.
    inert: ClassVar[frozenset[str]] = frozenset()

    queried: ClassVar[bool] = True

    num_heads: int
    tokens: int
    leading: int
    activation: str
    epsilon: float
    projection: str

    def __post_init__(self) -> None:
        """Check the activation.

        Raises:
            ValueError: it is none of those above.
        """
        if self.activation not in ACTIVATIONS:
            raise ValueError(
                f"activation {self.activation!r} is not among {', '.join(ACTIVATIONS)}"
            )

    @classmethod
    def matches(cls, visual: nn.Module) -> bool:
        """See `Pooling`."""
        # Workers have a pooling by its name, and open_clip would be half of their start.
        from open_clip.timm_model import TimmModel
        from timm.layers import AttentionPoolLatent

        if not isinstance(visual, TimmModel):
            return False
        return isinstance(getattr(visual.trunk, "attn_pool", None), AttentionPoolLatent)

    @classmethod
    def cut(cls, visual: nn.Module, image_size: int) -> Cut:
        """See `Pooling`."""
        from open_clip.timm_model import TimmModel
        from timm.models.vision_transformer import VisionTransformer

        assert isinstance(visual, TimmModel)
        tower = visual.trunk
        pooling = tower.attn_pool
        _check(visual, image_size)
        activation = activation_of(pooling.mlp.act)
        with_head = isinstance(tower.head, nn.Linear)
        state = {
            name: value.detach()
            for name, value in tower.named_parameters()
            if name.startswith((POOL, "head."))
        }
        rows, columns = tower.patch_embed.grid_size
        leading, dropped = int(tower.num_prefix_tokens), 0
        # A ViT shows its class and register tokens to the pooling only if it is told to.
        if isinstance(tower, VisionTransformer) and not tower.pool_include_prefix:
            leading, dropped = 0, leading
        tokens = leading + rows * columns
        first = tower.blocks[0]
        identity = {
            "tower": type(tower).__name__,
            "blocks": len(tower.blocks),
            "num_heads": int(first.attn.num_heads),
            "activation": type(getattr(first.mlp, "act", first.mlp)).__name__,
            "image_size": image_size,
            "dropped_tokens": dropped,
        }
        embed_dim = tower.head.out_features if with_head else pooling.out_features
        tower.attn_pool, tower.head = None, nn.Identity()
        return Cut(
            trunk=TokenTrunk(tower, dropped),
            pooling=cls(
                num_heads=int(pooling.num_heads),
                tokens=tokens,
                leading=leading,
                activation=activation,
                epsilon=float(pooling.norm.eps),
                projection="head" if with_head else "",
            ),
            state=state,
            prefix="visual.trunk.",
            tokens=tokens,
            width=int(pooling.kv.in_features),
            embed_dim=int(embed_dim),
            identity=identity,
        )

    @classmethod
    def group_of(cls, name: str) -> str | None:
        """See `safe_ray.poolings.base.Grouped`."""
        return name.removeprefix(POOL).split(".")[0]

    def prepare(self, maps: Tensor) -> Tensor:
        """See `Pooling`."""
        return maps.to(torch.promote_types(maps.dtype, torch.float32))

    def pool(self, tokens: Tensor, state: HeadState) -> Tensor:
        """See `Pooling`."""
        candidates, _, width = state[POOL + "kv.weight"].shape
        gathered = gather(tokens, attend(tokens, self._absorbed(state)), candidates)
        value = project(
            gathered,
            state[POOL + "kv.weight"][:, width:],
            state[POOL + "kv.bias"][:, width:],
        )
        output = _apply("proj", value, state)
        norm = (state[POOL + "norm.weight"], state[POOL + "norm.bias"])
        hidden = _apply("mlp.fc1", layer_norm(output, *norm, self.epsilon), state)
        output = output + _apply("mlp.fc2", ACTIVATIONS[self.activation](hidden), state)
        if "head.weight" not in state:
            return output
        return linear(output, state["head.weight"], state.get("head.bias"))

    def tokens_width(self, state: HeadState) -> int:
        """See `safe_ray.poolings.queries.Queried`."""
        return int(state[POOL + "kv.weight"].shape[-1])

    def with_queries(self, state: HeadState, queries: Tensor) -> dict[str, Tensor]:
        """See `safe_ray.poolings.queries.Queried`; the keys' projection takes them in.

        No image changes the projected query q, so that `W_k + q d^T sqrt(d_h) / |q|^2`, of each
        head of attention, has the absorbed query `u + d`.
        """
        whole = state[POOL + "kv.weight"]
        query = _query({name: tensor.unsqueeze(0) for name, tensor in state.items()})
        query = query.view(self.num_heads, -1, 1)
        depth = query.shape[1]
        share = query * (math.sqrt(depth) / query.square().sum(1, keepdim=True))
        changed = whole.clone()
        changed[: self.num_heads * depth] += (share * queries.unsqueeze(1)).flatten(0, 1)
        return {**state, POOL + "kv.weight": changed}

    def attention(self, tokens: Tensor, state: HeadState) -> Tensor:
        """See `Pooling`; the first `leading` are no place of the image."""
        weights = attend(tokens, self._absorbed(state))
        candidates = len(state[POOL + "latent"])
        by_head = weights.view(len(tokens), candidates, self.num_heads, tokens.shape[1])
        return by_head.transpose(0, 1)

    def activation_bytes(self, state: HeadState, batch_size: int) -> int:
        """See `Pooling`."""
        hidden, width = state[POOL + "mlp.fc1.weight"].shape[-2:]
        a_sample = _WEIGHTS * self.num_heads * self.tokens + _GATHERED * self.num_heads * width
        return 4 * batch_size * (a_sample + _HIDDEN * hidden + _ROWS * width)

    def step(self, bank: Bank, optimiser: BankOptimiser) -> Step | None:
        """See `Pooling`."""
        from safe_ray.heads.step import FusedStep

        if bank.classifier.device.type != "cpu" or QUERIES in bank.trained:
            return None
        return FusedStep(bank, optimiser, LatentHead(self.num_heads, self.activation, self.epsilon))

    def _absorbed(self, state: HeadState) -> Tensor:
        """Return what the tokens are multiplied with for their scores, `[K, H, C]`."""
        width = state[POOL + "kv.weight"].shape[-1]
        keys = state[POOL + "kv.weight"][:, :width]
        absorbed = absorb(_query(state), keys, self.num_heads)
        return absorbed + state[QUERIES] if QUERIES in state else absorbed


POOLING = LatentAttention


def _query(state: HeadState) -> Tensor:
    """Return the latent's projected query, stacked: `[K, C]`."""
    return _apply("q", state[POOL + "latent"][:, 0], state).squeeze(1)


def _apply(layer: str, inputs: Tensor, state: HeadState) -> Tensor:
    """Apply a layer of K heads to `[K, N, in]`."""
    return linear(inputs, state[f"{POOL}{layer}.weight"], state[f"{POOL}{layer}.bias"])


def _check(visual: TimmModel, image_size: int) -> None:
    """Refuse a tower whose pooling is another function than the one above.

    Raises:
        ValueError: see `Pooling.cut`.
    """
    from timm.models.eva import Eva
    from timm.models.vision_transformer import VisionTransformer

    tower = visual.trunk
    if type(tower) not in (VisionTransformer, Eva):
        raise ValueError(
            f"its tower is timm's {type(tower).__name__}, whose pooling may see other tokens than "
            "VisionTransformer's and Eva's: only those two are known"
        )
    made_for = tower.patch_embed.img_size
    if made_for != (image_size, image_size):
        raise ValueError(
            f"its patches are those of images of {made_for} pixels, not of an image_size of "
            f"{image_size}: choose the model whose image size that is"
        )
    pooling = tower.attn_pool
    names = {name for name, _ in pooling.named_parameters()}
    if names != _NAMES:
        raise ValueError(
            f"its pooling has the parameters {', '.join(sorted(names))}, and not those of the one "
            f"that is known: {', '.join(sorted(_NAMES ^ names))} make the difference"
        )
    if pooling.latent_len != 1 or pooling.pool != "token":
        raise ValueError(
            f"its pooling has {pooling.latent_len} latents, of which it takes {pooling.pool!r}: "
            "one latent that is the pooled token is known"
        )
    if not isinstance(pooling.norm, nn.LayerNorm):
        raise ValueError(f"its pooling's norm is a {type(pooling.norm).__name__}, and no LayerNorm")
    if pooling.mlp.norm is not None and not isinstance(pooling.mlp.norm, nn.Identity):
        raise ValueError("the MLP of its pooling has a norm inside, which is not known")
    after = [tower.fc_norm, *visual.head]
    if not all(isinstance(layer, nn.Identity | nn.Dropout) for layer in after):
        kinds = ", ".join(type(layer).__name__ for layer in after)
        raise ValueError(f"{kinds} follow its pooling, of which only a linear trunk.head is known")
    if not isinstance(tower.head, nn.Identity | nn.Linear):
        raise ValueError(f"its head is a {type(tower.head).__name__}, and no linear layer")
