"""CLIP's ModifiedResNet: `AttentionPool2d`, whose only query is the map's mean token.

The query is one token, so keys and values need never be formed for the tokens. With
`q = W_q t_0 + b_q` and, per attention head, `u = W_k^T q / sqrt(d)`, the scores are `u . t_i` (the
key bias adds the same constant to every score and cancels in the softmax), and `W_v` is applied
once, after the weighted sum of the tokens. The result is the same function as
`open_clip.modified_resnet.AttentionPool2d`, for a small part of its multiply-adds.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor, nn

from safe_ray.poolings.absorbed import AbsorbedHead, pool_heads
from safe_ray.poolings.attention_low_rank import pool_low_rank
from safe_ray.poolings.base import QUERIES, Cut, HeadState
from safe_ray.poolings.trunk import GridTrunk

if TYPE_CHECKING:
    from safe_ray.heads.bank import Bank
    from safe_ray.heads.optimiser import BankOptimiser
    from safe_ray.heads.step import Step

STRIDE = 32
# Intermediates of [batch, heads, C] that one head keeps between forward and backward.
_INTERMEDIATES = 8


@dataclass(frozen=True)
class AttentionPool:
    """open_clip's `AttentionPool2d` with absorbed projections.

    Its state: positional_embedding `[L + 1, C]`, {q,k,v}_proj.weight `[C, C]` and .bias `[C]`,
    c_proj.weight `[D, C]` and .bias `[D]`.

    Attributes:
        num_heads: attention heads; C is a multiple of it.
    """

    groups: ClassVar[tuple[str, ...]] = (
        "positional_embedding",
        "q_proj",
        "k_proj",
        "v_proj",
        "c_proj",
    )
    inert: ClassVar[frozenset[str]] = frozenset({"k_proj.bias"})
    projection: ClassVar[str] = "c_proj"
    queried: ClassVar[bool] = True

    num_heads: int

    @classmethod
    def matches(cls, visual: nn.Module) -> bool:
        """See `Pooling`."""
        # Workers have a pooling by its name, and open_clip would be half of their start.
        from open_clip.modified_resnet import ModifiedResNet

        return isinstance(visual, ModifiedResNet)

    @classmethod
    def cut(cls, visual: nn.Module, image_size: int) -> Cut:
        """See `Pooling`."""
        from open_clip.modified_resnet import ModifiedResNet

        assert isinstance(visual, ModifiedResNet)
        pooling = visual.attnpool
        grid = _grid(image_size)
        expected = pooling.positional_embedding.shape[0] - 1
        if expected != grid * grid:
            raise ValueError(
                f"of an image_size of {image_size} its trunk makes {grid}x{grid} tokens, but its "
                f"pooling expects {expected}: choose a multiple of {STRIDE}"
            )
        layers = (visual.layer1, visual.layer2, visual.layer3, visual.layer4)
        # Of the stem's three convolutions, the first has half of the width.
        width = visual.conv1.out_channels * 2
        identity = {"layers": [len(layer) for layer in layers], "width": width}
        state = {name: value.detach() for name, value in pooling.named_parameters()}
        visual.attnpool = nn.Identity()
        return Cut(
            trunk=GridTrunk(visual),
            pooling=cls(num_heads=int(pooling.num_heads)),
            state=state,
            prefix="visual.attnpool.",
            tokens=expected,
            width=int(pooling.positional_embedding.shape[1]),
            embed_dim=int(pooling.c_proj.out_features),
            identity=identity,
        )

    def prepare(self, maps: Tensor) -> Tensor:
        """See `with_mean_token`."""
        return with_mean_token(maps)

    def pool(self, tokens: Tensor, state: HeadState) -> Tensor:
        """See `Pooling`; takes the form that is the faster one on the tokens' device."""
        # A GPU is kept busy by the stacked form; a CPU's caches are too small for it.
        by_hand = tokens.device.type == "cpu" and QUERIES not in state
        form = pool_heads if by_hand else pool_bank
        return form(tokens, state, self.num_heads)

    def pool_in_graph(self, maps: Tensor, state: HeadState) -> Tensor:
        """See `safe_ray.poolings.base.Graphable`."""
        tokens = torch.cat([maps.mean(dim=1, keepdim=True), maps], dim=1)
        return pool_bank(tokens, state, self.num_heads)

    def pool_low_rank(self, tokens: Tensor, shared: HeadState, factors: HeadState) -> Tensor:
        """See `safe_ray.poolings.low_rank.SharedProducts`."""
        return pool_low_rank(tokens, shared, factors, self.num_heads)

    def tokens_width(self, state: HeadState) -> int:
        """See `safe_ray.poolings.queries.Queried`."""
        return int(state["positional_embedding"].shape[-1])

    def with_queries(self, state: HeadState, queries: Tensor) -> dict[str, Tensor]:
        """See `safe_ray.poolings.queries.Queried`.

        The image's mean makes the query here, so that no weight of the tower's can say it.
        """
        return {**state, QUERIES: queries}

    def attention(self, tokens: Tensor, state: HeadState) -> Tensor:
        """See `Pooling`; the mean token's weight falls on all tokens of the map alike.

        That is what it comes to in the pooled value, but for the tokens' positions. To leave it out
        instead would show two heads as equal of which one looks at the whole map and one does not.
        """
        weights = attend(tokens, state, self.num_heads)  # [K, H, N, L + 1]
        grid = weights[..., 1:]
        return (grid + weights[..., :1] / grid.shape[-1]).transpose(1, 2)

    def activation_bytes(self, state: HeadState, batch_size: int) -> int:
        """See `Pooling`."""
        width = state["positional_embedding"].shape[-1]
        return 4 * _INTERMEDIATES * batch_size * self.num_heads * width

    def step(self, bank: Bank, optimiser: BankOptimiser) -> Step | None:
        """See `Pooling`."""
        from safe_ray.heads.step import FusedStep

        if bank.classifier.device.type != "cpu" or QUERIES in bank.trained:
            return None
        return FusedStep(bank, optimiser, AbsorbedHead(self.num_heads))


POOLING = AttentionPool


def _grid(image_size: int) -> int:
    """Return the side of the map: one strided convolution, then four halvings."""
    return (image_size + 1) // 2 // (STRIDE // 2)


def with_mean_token(maps: Tensor) -> Tensor:
    """Put each map's mean token in front of its tokens: `[N, L, C]` -> `[N, L + 1, C]`.

    The tokens are float32, or float64 if the maps are.
    """
    samples, length, width = maps.shape
    dtype = torch.promote_types(maps.dtype, torch.float32)
    tokens = torch.empty(samples, length + 1, width, device=maps.device, dtype=dtype)
    tokens[:, 1:] = maps
    torch.mean(tokens[:, 1:], dim=1, out=tokens[:, 0])
    return tokens


def attend(tokens: Tensor, state: HeadState, num_heads: int) -> Tensor:
    """Return the weights that every head of a bank gives the tokens.

    Args:
        tokens: as for `pool_bank`.
        state: as for `pool_bank`.
        num_heads: attention heads of the pooling.

    Returns:
        `[K, H, N, L + 1]`, which add up to 1, the mean token's first.
    """
    position = state["positional_embedding"]
    candidates, length, width = position.shape
    samples = tokens.shape[0]
    depth = width // num_heads

    mean_token = tokens[:, 0] + position[:, :1]  # [K, N, C]
    query = torch.baddbmm(
        state["q_proj.bias"].unsqueeze(1), mean_token, state["q_proj.weight"].transpose(1, 2)
    )
    query = query * (1.0 / math.sqrt(depth))
    query = query.view(candidates, samples, num_heads, depth).transpose(1, 2)
    key_weight = state["k_proj.weight"].view(candidates, num_heads, depth, width)
    absorbed = query @ key_weight  # [K, H, N, C]
    if QUERIES in state:
        absorbed = absorbed + state[QUERIES].unsqueeze(2)

    # Token scores are one product a sample over all candidates and heads; the positional part is
    # the same for every sample, so it is one product a candidate.
    per_sample = absorbed.permute(2, 0, 1, 3).reshape(samples, candidates * num_heads, width)
    token_scores = torch.bmm(per_sample, tokens.transpose(1, 2))
    token_scores = token_scores.view(samples, candidates, num_heads, length).permute(1, 2, 0, 3)
    position_scores = torch.bmm(
        absorbed.reshape(candidates, num_heads * samples, width), position.transpose(1, 2)
    ).view(candidates, num_heads, samples, length)
    return torch.softmax(token_scores + position_scores, dim=-1)


def pool_bank(tokens: Tensor, state: HeadState, num_heads: int) -> Tensor:
    """Pool a batch of dense maps with every head of a bank.

    Args:
        tokens: `[N, L + 1, C]`, the mean token first (see `with_mean_token`).
        state: the stacked parameters, `AttentionPool`'s names with a leading axis of K.
        num_heads: attention heads of the pooling; `C` must be a multiple of it.

    Returns:
        `[K, N, D]` pooled features, as the pooling returns them (not normalised).
    """
    position = state["positional_embedding"]
    candidates, length, width = position.shape
    samples = tokens.shape[0]
    depth = width // num_heads
    rows = num_heads * samples

    attention = attend(tokens, state, num_heads)  # [K, H, N, L + 1]
    per_sample = attention.permute(2, 0, 1, 3).reshape(samples, candidates * num_heads, length)
    pooled = torch.bmm(per_sample, tokens)
    pooled = pooled.view(samples, candidates, num_heads, width).permute(1, 2, 0, 3)
    pooled = pooled + torch.bmm(attention.reshape(candidates, rows, length), position).view(
        candidates, num_heads, samples, width
    )

    value_weight = state["v_proj.weight"].view(candidates, num_heads, depth, width)
    value = pooled @ value_weight.transpose(2, 3)  # [K, H, N, d]
    value = value.transpose(1, 2).reshape(candidates, samples, width)
    value = value + state["v_proj.bias"].unsqueeze(1)
    return torch.baddbmm(
        state["c_proj.bias"].unsqueeze(1), value, state["c_proj.weight"].transpose(1, 2)
    )
