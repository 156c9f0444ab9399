"""`AttentionPool2d` with K heads whose projections differ by products of low rank.

Where a projection is `W + U_k D_k`, the heads share every product with W, which is read once for
all of them, and what they differ by goes through r numbers. With x = tokens + position, which the
heads share as well, m = x[:, 0], and h one of the attention heads:

    Q_k  = (m Wq^T + bq + (m Dq_k^T) Uq_k^T) / sqrt(d)          [N, C], the first term once
    S_kh = (Q_kh Wk_h) x^T + (Q_kh Uk_kh) (x Dk_k^T)^T           [N, T]
    A_kh = softmax(S_kh)
    V_kh = (A_kh x) Wv_h^T + (A_kh (x Dv_k^T)) Uv_kh^T + bv_h    [N, d]
    O_k  = V_k Wc^T + (V_k Dc_k^T) Uc_k^T + bc                   [N, D]
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from safe_ray.poolings.base import HeadState


def pool_low_rank(tokens: Tensor, shared: HeadState, factors: HeadState, num_heads: int) -> Tensor:
    """Pool a batch of dense maps with every head of a bank.

    Args:
        tokens: `[N, T, C]`, the mean token first; they get no gradient.
        shared: the parameters by `AttentionPool2d`'s names; they get no gradient.
        factors: `<name>.up` `[K, out, r]` and `<name>.down` `[K, r, in]` of some of the weights of
            q_proj, k_proj, v_proj and c_proj, at least one.
        num_heads: attention heads of the pooling; `C` must be a multiple of it.

    Returns:
        `[K, N, D]` pooled features, not normalised.
    """
    x = tokens + shared["positional_embedding"]
    samples, length, width = x.shape
    depth = width // num_heads
    candidates = len(next(iter(factors.values())))
    by_head = (num_heads, depth, width)

    mean = x[:, 0].expand(candidates, samples, width)
    query = nn.functional.linear(x[:, 0], shared["q_proj.weight"], shared["q_proj.bias"])
    query = query.expand(candidates, samples, width)
    query = _changed(query, mean, factors, "q_proj.weight") * (1.0 / math.sqrt(depth))

    rows = query.reshape(candidates * samples, num_heads, depth).transpose(0, 1)
    absorbed = torch.bmm(rows, shared["k_proj.weight"].view(by_head))  # [H, K N, C]
    absorbed = absorbed.view(num_heads, candidates, samples, width).permute(2, 1, 0, 3)
    absorbed = absorbed.reshape(samples, candidates * num_heads, width)
    scores = torch.bmm(absorbed, x.transpose(1, 2))
    scores = scores.view(samples, candidates, num_heads, length).transpose(0, 1)  # [K, N, H, T]
    if "k_proj.weight.up" in factors:
        up = _up_by_head(factors["k_proj.weight.up"], num_heads)
        left = query.view(candidates, samples, num_heads, depth).transpose(1, 2) @ up
        scores = scores + left.transpose(1, 2) @ _thin(x, factors["k_proj.weight.down"]).mT
    attention = torch.softmax(scores, dim=-1)

    per_sample = attention.transpose(0, 1).reshape(samples, candidates * num_heads, length)
    pooled = torch.bmm(per_sample, x).view(samples, candidates, num_heads, width)
    pooled = pooled.permute(2, 1, 0, 3).reshape(num_heads, candidates * samples, width)
    value = torch.bmm(pooled, shared["v_proj.weight"].view(by_head).transpose(1, 2))
    value = value.view(num_heads, candidates, samples, depth).permute(1, 2, 0, 3)  # [K, N, H, d]
    if "v_proj.weight.up" in factors:
        up = _up_by_head(factors["v_proj.weight.up"], num_heads)
        right = (attention @ _thin(x, factors["v_proj.weight.down"])).transpose(1, 2)
        value = value + (right @ up.mT).transpose(1, 2)
    value = value.reshape(candidates, samples, width) + shared["v_proj.bias"]

    output = nn.functional.linear(value, shared["c_proj.weight"], shared["c_proj.bias"])
    return _changed(output, value, factors, "c_proj.weight")


def _changed(plain: Tensor, inputs: Tensor, factors: HeadState, name: str) -> Tensor:
    """Add to `inputs W^T`, `[K, N, out]`, what the heads have of their own; inputs `[K, N, in]`."""
    if f"{name}.up" not in factors:
        return plain
    thin = torch.bmm(inputs, factors[f"{name}.down"].mT)
    return torch.baddbmm(plain, thin, factors[f"{name}.up"].mT)


def _thin(x: Tensor, down: Tensor) -> Tensor:
    """Return `x D_k^T` of every head, `[K, N, T, r]`, by one product."""
    candidates, rank, width = down.shape
    thin = x @ down.reshape(candidates * rank, width).t()
    return thin.view(*x.shape[:2], candidates, rank).permute(2, 0, 1, 3)


def _up_by_head(up: Tensor, num_heads: int) -> Tensor:
    """View `[K, C, r]` as `[K, H, d, r]`."""
    candidates, width, rank = up.shape
    return up.view(candidates, num_heads, width // num_heads, rank)
