"""Attention with one query a head of a bank, which no image changes.

The query is a parameter, so that it is projected once for all images, and the keys' projection is
absorbed into it: per head of attention `u = W_k^T q / sqrt(d)`, the scores of a token are `u . x`,
and `W_v` is applied once, after the weighted sum of the tokens. So no key or value of a token is
formed. A bias of the keys adds the same constant to every score and cancels in the softmax.

Letters: K heads of a bank, N samples, L tokens of C channels, H heads of attention of d = E / H.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


def absorb(query: Tensor, key_weight: Tensor, num_heads: int) -> Tensor:
    """Return the queries as they meet the tokens.

    Args:
        query: `[K, E]`, projected.
        key_weight: `[K, E, C]`.
        num_heads: H.

    Returns:
        `[K, H, C]`, scaled.
    """
    candidates, width, channels = key_weight.shape
    depth = width // num_heads
    by_head = query.view(candidates, num_heads, 1, depth) * (1.0 / math.sqrt(depth))
    return (by_head @ key_weight.view(candidates, num_heads, depth, channels)).squeeze(2)


def attend(tokens: Tensor, absorbed: Tensor) -> Tensor:
    """Return the weights of the tokens, which add up to 1.

    Args:
        tokens: `[N, L, C]`.
        absorbed: `[K, H, C]`.

    Returns:
        `[N, K H, L]`, contiguous.
    """
    candidates, num_heads, channels = absorbed.shape
    # One product over all samples, candidates and heads of attention.
    scores = nn.functional.linear(tokens, absorbed.reshape(candidates * num_heads, channels))
    return torch.softmax(scores.transpose(1, 2).contiguous(), dim=-1)


def gather(tokens: Tensor, weights: Tensor, candidates: int) -> Tensor:
    """Return the weighted sums of the tokens.

    Args:
        tokens: `[N, L, C]`.
        weights: `[N, K H, L]`.
        candidates: K.

    Returns:
        `[K, H, N, C]`, a view.
    """
    samples, rows, _ = weights.shape
    pooled = torch.bmm(weights, tokens)
    by_head = pooled.view(samples, candidates, rows // candidates, tokens.shape[2])
    return by_head.permute(1, 2, 0, 3)


def project(gathered: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Return what the heads of attention make of the values, beside each other.

    Args:
        gathered: `[K, H, N, C]`.
        weight: `[K, E, C]`.
        bias: `[K, E]`.

    Returns:
        `[K, N, E]`.
    """
    candidates, num_heads, samples, channels = gathered.shape
    width = weight.shape[1]
    by_head = weight.view(candidates, num_heads, width // num_heads, channels)
    value = (gathered @ by_head.transpose(2, 3)).transpose(1, 2)
    return value.reshape(candidates, samples, width) + bias.unsqueeze(1)
