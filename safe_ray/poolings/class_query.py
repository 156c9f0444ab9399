"""The last block of a transformer, computed for its class token alone, of K heads at once.

Only the class token of the last block's output reaches the embedding. So the block's attention has
one query, and keys and values need never be formed: with x^ the tokens normalised to mean 0 and
variance 1, which all heads share, and g, b the weight and bias of the first normalisation,

    y_0 = g x^_0 + b                    q_h = (W_q y_0 + b_q)_h / sqrt(d)
    u_h = g (W_kh^T q_h)                a_h = softmax(u_h . x^_i)
    p_h = g (sum_i a_hi x^_i) + b       v_h = W_vh p_h + b_vh

for each head h of attention: what b and the key's bias add to a score is the same for every token,
and the weights a_h add up to 1. What follows is the block's own: the output projection, the
residual, the MLP of one token, the last normalisation, and the projection to the embedding.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from safe_ray.poolings.base import HeadState
from safe_ray.poolings.layers import ACTIVATIONS, layer_norm, linear

if TYPE_CHECKING:
    from safe_ray.heads.bank import Bank
    from safe_ray.heads.optimiser import BankOptimiser
    from safe_ray.heads.step import Step

# Intermediates of [batch, heads, C] that one head keeps between forward and backward.
_INTERMEDIATES = 8


@dataclass(frozen=True)
class Shape:
    """What the function of a block depends on beside its parameters.

    Attributes:
        num_heads: attention heads; C is a multiple of it.
        epsilon: of the three normalisations.
        activation: of the MLP, a key of `ACTIVATIONS`.
    """

    num_heads: int
    epsilon: float
    activation: str


@dataclass(frozen=True)
class Block:
    """The parameters of K heads, each with a leading axis of K; None is what a tower has not.

    Attributes:
        norm_weight: g, `[K, C]`.
        norm_bias: b, `[K, C]`.
        query_weight: W_q, `[K, C, C]`.
        query_bias: `[K, C]`.
        key_weight: W_k, `[K, C, C]`.
        value_weight: W_v, `[K, C, C]`.
        value_bias: `[K, C]`.
        output_weight: `[K, C, C]`.
        output_bias: `[K, C]`.
        attention_scale: `[K, C]`, what the attention's output is multiplied with.
        mlp_norm_weight: `[K, C]`.
        mlp_norm_bias: `[K, C]`.
        up_weight: `[K, M, C]`.
        up_bias: `[K, M]`.
        down_weight: `[K, C, M]`.
        down_bias: `[K, C]`.
        mlp_scale: `[K, C]`, what the MLP's output is multiplied with.
        last_norm_weight: `[K, C]`.
        last_norm_bias: `[K, C]`.
        projection: `[K, C, D]`, applied from the right.
        projection_bias: `[K, D]`.
    """

    norm_weight: Tensor
    norm_bias: Tensor
    query_weight: Tensor
    query_bias: Tensor | None
    key_weight: Tensor
    value_weight: Tensor
    value_bias: Tensor | None
    output_weight: Tensor
    output_bias: Tensor | None
    attention_scale: Tensor | None
    mlp_norm_weight: Tensor
    mlp_norm_bias: Tensor
    up_weight: Tensor
    up_bias: Tensor | None
    down_weight: Tensor
    down_bias: Tensor | None
    mlp_scale: Tensor | None
    last_norm_weight: Tensor
    last_norm_bias: Tensor
    projection: Tensor
    projection_bias: Tensor | None


def prepare(maps: Tensor, epsilon: float) -> Tensor:
    """Return what all heads share of the block's inputs: `[N, L, C]` -> `[N, L + 1, C]`.

    The class token as it is comes first, for the residual; the L tokens follow, the class token
    being the first of them, normalised to mean 0 and variance 1. They are float32, or float64 if
    the maps are.
    """
    tokens = maps.to(torch.promote_types(maps.dtype, torch.float32))
    normalised = functional.layer_norm(tokens, tokens.shape[-1:], eps=epsilon)
    return torch.cat([tokens[:, :1], normalised], dim=1)


def attend(tokens: Tensor, block: Block, shape: Shape) -> Tensor:
    """Return the weights that the class token gives the L tokens: `[K, H, N, L]`.

    Args:
        tokens: as `prepare` returns them.
        block: the parameters of K heads.
        shape: of the block.
    """
    normalised = tokens[:, 1:]
    samples, length, width = normalised.shape
    candidates, heads = len(block.norm_weight), shape.num_heads
    depth = width // heads

    first = normalised[:, 0] * block.norm_weight[:, None] + block.norm_bias[:, None]  # [K, N, C]
    query = linear(first, block.query_weight, block.query_bias) * (1.0 / math.sqrt(depth))
    query = query.view(candidates, samples, heads, depth).transpose(1, 2)
    absorbed = query @ block.key_weight.view(candidates, heads, depth, width)  # [K, H, N, C]
    absorbed = absorbed * block.norm_weight[:, None, None]
    # One product a sample over all candidates and heads.
    per_sample = absorbed.permute(2, 0, 1, 3).reshape(samples, candidates * heads, width)
    scores = torch.bmm(per_sample, normalised.transpose(1, 2))
    scores = scores.view(samples, candidates, heads, length).permute(1, 2, 0, 3)
    return torch.softmax(scores, dim=-1)


def pool(tokens: Tensor, block: Block, shape: Shape) -> Tensor:
    """Return the embeddings of N maps with K heads: `[K, N, D]`.

    One head at a time is no faster on a CPU: most of it are products with a head's own weights.

    Args:
        tokens: as `prepare` returns them.
        block: the parameters of K heads.
        shape: of the block.
    """
    normalised = tokens[:, 1:]
    samples, length, width = normalised.shape
    candidates, heads = len(block.norm_weight), shape.num_heads
    depth = width // heads

    weights = attend(tokens, block, shape)  # [K, H, N, L]
    per_sample = weights.permute(2, 0, 1, 3).reshape(samples, candidates * heads, length)
    pooled = torch.bmm(per_sample, normalised).view(samples, candidates, heads, width)
    pooled = pooled.permute(1, 2, 0, 3)  # [K, H, N, C]
    pooled = pooled * block.norm_weight[:, None, None] + block.norm_bias[:, None, None]
    value = pooled @ block.value_weight.view(candidates, heads, depth, width).transpose(2, 3)
    value = value.transpose(1, 2).reshape(candidates, samples, width)
    if block.value_bias is not None:
        value = value + block.value_bias[:, None]

    stream = tokens[:, 0] + _scaled(
        linear(value, block.output_weight, block.output_bias), block.attention_scale
    )
    hidden = layer_norm(stream, block.mlp_norm_weight, block.mlp_norm_bias, shape.epsilon)
    hidden = ACTIVATIONS[shape.activation](linear(hidden, block.up_weight, block.up_bias))
    stream = stream + _scaled(linear(hidden, block.down_weight, block.down_bias), block.mlp_scale)
    last = layer_norm(stream, block.last_norm_weight, block.last_norm_bias, shape.epsilon)
    return linear(last, block.projection.transpose(1, 2), block.projection_bias)


@dataclass(frozen=True)
class ClassQuery(ABC):
    """What poolings by a last block have in common, whatever its parameters are called.

    Attributes:
        index: of the last block.
        num_heads: attention heads; C is a multiple of it.
        epsilon: of the normalisations.
        activation: of the MLP: `gelu`, `gelu_tanh` or `quick_gelu`.
    """

    inert: ClassVar[frozenset[str]] = frozenset()
    leading: ClassVar[int] = 1
    last_norm: ClassVar[str]
    """The name of the last normalisation, whose weight is `[C]`."""

    index: int
    num_heads: int
    epsilon: float
    activation: str

    @abstractmethod
    def block(self, state: HeadState) -> Block:
        """Return the parameters of K heads by what they do."""

    def prepare(self, maps: Tensor) -> Tensor:
        """See `prepare` of this module."""
        return prepare(maps, self.epsilon)

    def pool(self, tokens: Tensor, state: HeadState) -> Tensor:
        """See `Pooling`."""
        return pool(tokens, self.block(state), self._shape)

    def attention(self, tokens: Tensor, state: HeadState) -> Tensor:
        """See `Pooling`; the first weight is what the class token gives itself."""
        return attend(tokens, self.block(state), self._shape).transpose(1, 2)

    def activation_bytes(self, state: HeadState, batch_size: int) -> int:
        """See `Pooling`."""
        width = state[f"{self.last_norm}.weight"].shape[-1]
        return 4 * _INTERMEDIATES * batch_size * self.num_heads * width

    def step(self, bank: Bank, optimiser: BankOptimiser) -> Step | None:
        """See `Pooling`: autograd finds the gradients."""
        return None

    @property
    def _shape(self) -> Shape:
        return Shape(self.num_heads, self.epsilon, self.activation)


def epsilon_of(*norms: nn.Module) -> float:
    """Return the epsilon that normalisations share.

    Raises:
        ValueError: they are no plain LayerNorms of one epsilon.
    """
    plain = [norm for norm in norms if isinstance(norm, nn.LayerNorm)]
    values = {float(norm.eps) for norm in plain if norm.weight is not None}
    if len(plain) != len(norms) or len(values) != 1 or any(n.bias is None for n in plain):
        raise ValueError("its last block does not have LayerNorms of one epsilon")
    return values.pop()


def word_of(name: str, words: dict[str, str]) -> str | None:
    """Return the word of the first component of a dotted name that has one."""
    return next((words[part] for part in name.split(".") if part in words), None)


def _scaled(value: Tensor, scale: Tensor | None) -> Tensor:
    return value if scale is None else value * scale[:, None]
