"""CoCa's `AttentionalPooler`: learnt queries, of which the first makes the embedding.

The other queries make the tokens that CoCa's text decoder reads, and have no part in the embedding.
With the first query t, tokens x, and n(x) their normal form (mean 0, variance 1),

    q = W_q ln_q(t) + b_q,  v = attention of q to g n(x) + b,  z = ln_post(W_o v + b_o) proj

where g and b are ln_k's. Neither needs the tokens: g is absorbed into the query like the keys'
projection, b adds the same to every score, and the weights of the values add up to 1. So the heads
of a bank share n(x) (see also `constant_query`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor, nn

from safe_ray.poolings.base import Cut, HeadState
from safe_ray.poolings.constant_query import absorb, attend, gather, project
from safe_ray.poolings.layers import layer_norm, linear
from safe_ray.poolings.trunk import BlockTrunk

if TYPE_CHECKING:
    from open_clip.transformer import VisionTransformer

    from safe_ray.heads.bank import Bank
    from safe_ray.heads.optimiser import BankOptimiser
    from safe_ray.heads.step import Step

_POOL = "attn_pool."
_LEADING = 1
# Intermediates that one head keeps between forward and backward: of [N, H, L], of [N, H, C], and of
# [N, D].
_WEIGHTS, _GATHERED, _ROWS = 3, 3, 8


@dataclass(frozen=True)
class AttentionalPool:
    """open_clip's `AttentionalPooler` with absorbed projections, `ln_post` and `proj`.

    Its state: attn_pool.query `[Q, D]`, of which the first row is used;
    attn_pool.attn.{q,k,v}_proj_weight `[D, D]`, `[D, C]` and `[D, C]`, or all three as
    attn_pool.attn.in_proj_weight `[3 D, C]` where C is D; attn_pool.attn.in_proj_bias `[3 D]`;
    attn_pool.attn.out_proj.weight `[D, D]` and .bias; attn_pool.ln_q, attn_pool.ln_k and ln_post,
    each with .weight and .bias; and proj `[D, D]`, which multiplies from the right.

    Attributes:
        num_heads: attention heads; D is a multiple of it.
        tokens: L, of a map; the first is the class token, and no place of the image.
        epsilon: of the norms.
    """

    groups: ClassVar[tuple[str, ...]] = (
        "query",
        "q_proj_weight",
        "k_proj_weight",
        "v_proj_weight",
        "in_proj_weight",
        "in_proj_bias",
        "out_proj",
        "ln_q",
        "ln_k",
        "ln_post",
        "proj",
    )
    # The keys' part of in_proj_bias has no gradient either, but the others have.
    inert: ClassVar[frozenset[str]] = frozenset()
    projection: ClassVar[str] = "proj"
    leading: ClassVar[int] = _LEADING

    num_heads: int
    tokens: int
    epsilon: float

    @classmethod
    def matches(cls, visual: nn.Module) -> bool:
        """See `Pooling`."""
        # Workers have a pooling by its name, and open_clip would be half of their start.
        from open_clip.transformer import VisionTransformer

        return isinstance(visual, VisionTransformer) and visual.attn_pool is not None

    @classmethod
    def cut(cls, visual: nn.Module, image_size: int) -> Cut:
        """See `Pooling`."""
        from open_clip.transformer import VisionTransformer

        assert isinstance(visual, VisionTransformer)
        _check(visual, image_size)
        pooling = visual.attn_pool
        state = {
            name: value.detach()
            for name, value in visual.named_parameters()
            if name.startswith((_POOL, "ln_post.")) or name == "proj"
        }
        rows, columns = visual.grid_size
        block = visual.transformer.resblocks[0]
        identity = {
            "blocks": len(visual.transformer.resblocks),
            "num_heads": int(block.attn.num_heads),
            "activation": type(block.mlp.gelu).__name__,
            "image_size": image_size,
        }
        visual.attn_pool, visual.ln_post, visual.proj = None, nn.Identity(), None
        return Cut(
            trunk=BlockTrunk(visual),
            pooling=cls(
                num_heads=int(pooling.attn.num_heads),
                tokens=_LEADING + rows * columns,
                epsilon=float(pooling.ln_k.eps),
            ),
            state=state,
            prefix="visual.",
            tokens=_LEADING + rows * columns,
            width=int(pooling.attn.kdim),
            embed_dim=int(state["proj"].shape[1]),
            identity=identity,
        )

    @classmethod
    def group_of(cls, name: str) -> str | None:
        """See `safe_ray.poolings.base.Grouped`."""
        return name.removeprefix(_POOL).removeprefix("attn.").split(".")[0]

    def prepare(self, maps: Tensor) -> Tensor:
        """See `Pooling`; returns the tokens in their normal form."""
        tokens = maps.to(torch.promote_types(maps.dtype, torch.float32))
        return nn.functional.layer_norm(tokens, tokens.shape[-1:], eps=self.epsilon)

    def pool(self, tokens: Tensor, state: HeadState) -> Tensor:
        """See `Pooling`."""
        gain, shift = state[_POOL + "ln_k.weight"], state[_POOL + "ln_k.bias"]
        gathered = gather(tokens, attend(tokens, self._absorbed(state)), len(gain))
        seen = torch.addcmul(shift[:, None, None], gathered, gain[:, None, None])
        value = project(seen, _weight(state, 2), _bias(state, 2))
        out = _POOL + "attn.out_proj."
        output = linear(value, state[out + "weight"], state[out + "bias"])
        normal = layer_norm(output, state["ln_post.weight"], state["ln_post.bias"], self.epsilon)
        return torch.bmm(normal, state["proj"])

    def attention(self, tokens: Tensor, state: HeadState) -> Tensor:
        """See `Pooling`; the first of the tokens is no place of the image."""
        absorbed = self._absorbed(state)
        by_head = attend(tokens, absorbed).view(len(tokens), *absorbed.shape[:2], tokens.shape[1])
        return by_head.transpose(0, 1)

    def activation_bytes(self, state: HeadState, batch_size: int) -> int:
        """See `Pooling`."""
        width, embed_dim = state[_POOL + "ln_k.weight"].shape[-1], state["proj"].shape[-1]
        by_head = self.num_heads * (_WEIGHTS * self.tokens + _GATHERED * width)
        return 4 * batch_size * (by_head + _ROWS * embed_dim)

    def step(self, bank: Bank, optimiser: BankOptimiser) -> Step | None:
        """See `Pooling`."""
        return None

    def _absorbed(self, state: HeadState) -> Tensor:
        """Return what the tokens are multiplied with for their scores, `[K, H, C]`."""
        norm = (state[_POOL + "ln_q.weight"], state[_POOL + "ln_q.bias"])
        first = layer_norm(state[_POOL + "query"][:, :1], *norm, self.epsilon)
        query = linear(first, _weight(state, 0), _bias(state, 0)).squeeze(1)
        absorbed = absorb(query, _weight(state, 1), self.num_heads)
        return absorbed * state[_POOL + "ln_k.weight"].unsqueeze(1)


POOLING = AttentionalPool


def _weight(state: HeadState, part: int) -> Tensor:
    """Return the projection of the queries (0), keys (1) or values (2), stacked."""
    whole = state.get(_POOL + "attn.in_proj_weight")
    if whole is None:
        return state[f"{_POOL}attn.{'qkv'[part]}_proj_weight"]
    return whole.chunk(3, dim=1)[part]


def _bias(state: HeadState, part: int) -> Tensor:
    """Return the bias of such a projection, stacked."""
    return state[_POOL + "attn.in_proj_bias"].chunk(3, dim=1)[part]


def _check(visual: VisionTransformer, image_size: int) -> None:
    """Refuse a tower whose pooling is another function than the one above.

    Raises:
        ValueError: see `Pooling.cut`.
    """
    from open_clip.transformer import AttentionalPooler

    pooling = visual.attn_pool
    if visual.attn_pool_contrastive is not None:
        raise ValueError(
            f"its pooling is of the kind {visual.attn_pool_type!r}, with a second one for the "
            "embedding: only attentional_pool=true is known, where the first query makes it"
        )
    if visual.pool_type != "tok":
        raise ValueError(
            f"its pool_type is {visual.pool_type!r}: only 'tok' is known, with which the first "
            "query makes the embedding"
        )
    if not isinstance(pooling, AttentionalPooler) or not isinstance(visual.proj, nn.Parameter):
        raise ValueError("it has no AttentionalPooler that a projection follows")
    if tuple(visual.image_size) != (image_size, image_size):
        raise ValueError(
            f"its positions are those of images of {tuple(visual.image_size)} pixels, not of an "
            f"image_size of {image_size}: choose the model whose image size that is"
        )
    norms = {"ln_q": pooling.ln_q, "ln_k": pooling.ln_k, "ln_post": visual.ln_post}
    for name, norm in norms.items():
        if not isinstance(norm, nn.LayerNorm) or norm.eps != pooling.ln_k.eps:
            raise ValueError(f"its {name} is {norm}, and no LayerNorm with the eps of the others")
    if pooling.attn.in_proj_bias is None or pooling.attn.bias_k is not None:
        raise ValueError("its attention has other biases than those of its three projections")
