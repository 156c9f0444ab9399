"""CLIP's attention pooling with absorbed projections: the reference for one head."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch.nn import functional

POOLING_PARAMETERS = (
    "positional_embedding",
    "q_proj.weight",
    "q_proj.bias",
    "k_proj.weight",
    "k_proj.bias",
    "v_proj.weight",
    "v_proj.bias",
    "c_proj.weight",
    "c_proj.bias",
)
"""open_clip's names of the parameters of its `AttentionPool2d`."""


def attention_pool(
    tokens: torch.Tensor, weights: Mapping[str, torch.Tensor], heads: int
) -> torch.Tensor:
    """Pool dense maps; the same function as open_clip's `AttentionPool2d`.

    The only query is the mean token, so no key or value of a token is ever formed. With q the
    projected query of an attention head and W_k, W_v its projections (d = C / heads rows each):

        scores_i = (W_k x_i + b_k) . q / sqrt(d) = x_i . (W_k^T q) / sqrt(d) + constant
        pooled   = sum_i a_i (W_v x_i + b_v)     = W_v (sum_i a_i x_i) + b_v

    where a = softmax(scores). The constant, and with it `k_proj.bias`, has no effect.

    Args:
        tokens: [N, L, C], the trunk's output.
        weights: `POOLING_PARAMETERS` by open_clip's names; the result has their dtype.
        heads: the number of attention heads; divides C.

    Returns:
        [N, D], not normalised.
    """
    tokens = tokens.to(weights["q_proj.weight"].dtype)
    batch, _, width = tokens.shape
    per_head = (heads, width // heads)
    positioned = torch.cat([tokens.mean(dim=1, keepdim=True), tokens], dim=1)
    positioned = positioned + weights["positional_embedding"]

    query = functional.linear(positioned[:, 0], weights["q_proj.weight"], weights["q_proj.bias"])
    query = query.view(batch, *per_head) / math.sqrt(per_head[1])
    key_weight = weights["k_proj.weight"].view(*per_head, width)
    absorbed = torch.einsum("nhd,hdc->nhc", query, key_weight)
    attention = torch.softmax(absorbed @ positioned.transpose(1, 2), dim=-1)

    value_weight = weights["v_proj.weight"].view(*per_head, width)
    summed = torch.einsum("nhc,hdc->nhd", attention @ positioned, value_weight)
    values = summed.reshape(batch, width) + weights["v_proj.bias"]
    return functional.linear(values, weights["c_proj.weight"], weights["c_proj.bias"])
