from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from open_clip.modified_resnet import AttentionPool2d

from safe_ray.backbones.pooling import POOLING_PARAMETERS, attention_pool


def lively_pooling(grid, width, heads, outputs, seed=0):
    torch.manual_seed(seed)
    pooling = AttentionPool2d(grid, width, heads, outputs).double()
    for name, parameter in pooling.named_parameters():
        if name.endswith("bias"):
            parameter.data.normal_()
    return pooling


def as_map(tokens, grid):
    return tokens.transpose(1, 2).reshape(tokens.shape[0], tokens.shape[2], grid, grid)


@settings(max_examples=30, deadline=None)
@given(
    batch=st.integers(1, 5),
    grid=st.integers(1, 6),
    heads=st.integers(1, 6),
    per_head=st.integers(1, 9),
    outputs=st.integers(1, 20),
    scale=st.sampled_from([0.01, 1.0, 30.0]),
)
def test_it_is_open_clips_pooling(batch, grid, heads, per_head, outputs, scale):
    width = heads * per_head
    pooling = lively_pooling(grid, width, heads, outputs)
    tokens = torch.randn(batch, grid * grid, width, dtype=torch.float64) * scale
    pooled = attention_pool(tokens, dict(pooling.named_parameters()), heads)
    torch.testing.assert_close(pooled, pooling(as_map(tokens, grid)), rtol=1e-10, atol=1e-10)


def test_its_gradients_are_those_of_open_clips_pooling():
    grid, width, heads, outputs = 4, 96, 6, 20
    pooling = lively_pooling(grid, width, heads, outputs)
    maps = torch.randn(7, grid * grid, width, dtype=torch.float64)
    target = torch.randn(7, outputs, dtype=torch.float64)

    theirs = maps.clone().requires_grad_()
    (pooling(as_map(theirs, grid)) * target).sum().backward()

    ours = maps.clone().requires_grad_()
    weights = {
        name: parameter.detach().clone().requires_grad_()
        for name, parameter in pooling.named_parameters()
    }
    (attention_pool(ours, weights, heads) * target).sum().backward()

    torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-9, atol=1e-12)
    for name, parameter in pooling.named_parameters():
        if name == "k_proj.bias":
            assert weights[name].grad is None
            assert parameter.grad.abs().max() < 1e-12
        else:
            torch.testing.assert_close(weights[name].grad, parameter.grad, rtol=1e-9, atol=1e-12)


def test_its_parameters_have_open_clips_names():
    assert set(POOLING_PARAMETERS) == set(dict(lively_pooling(2, 4, 2, 3).named_parameters()))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_the_result_has_the_dtype_of_the_weights(dtype):
    pooling = lively_pooling(2, 8, 2, 3).float()
    tokens = torch.randn(2, 4, 8).to(dtype)
    pooled = attention_pool(tokens, dict(pooling.named_parameters()), 2)
    assert pooled.dtype == torch.float32
    torch.testing.assert_close(pooled, pooling(as_map(tokens.float(), 2)))
