"""The weights that a pooling gives the places of a map are those of open_clip's own layer."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from open_clip.modified_resnet import AttentionPool2d
from torch import Tensor
from torch.nn import functional

from safe_ray.poolings.low_rank import LowRank, beginning, merged, weights_of
from safe_ray.poolings.modified_resnet import AttentionPool
from tests.heads.test_bank import GRID, HEADS, NAMES, POOL, WIDTH, layer, one_batch, state_of


def open_clips(pooling: AttentionPool2d, maps: Tensor) -> Tensor:
    """The weights `[N, H, L + 1]` of the layer's query, which is the mean token."""
    tokens = torch.cat([maps.mean(1, keepdim=True), maps], 1).transpose(0, 1)
    tokens = tokens + pooling.positional_embedding[:, None]
    _, weights = functional.multi_head_attention_forward(
        query=tokens[:1],
        key=tokens,
        value=tokens,
        embed_dim_to_check=tokens.shape[-1],
        num_heads=pooling.num_heads,
        q_proj_weight=pooling.q_proj.weight,
        k_proj_weight=pooling.k_proj.weight,
        v_proj_weight=pooling.v_proj.weight,
        in_proj_weight=None,
        in_proj_bias=torch.cat([pooling.q_proj.bias, pooling.k_proj.bias, pooling.v_proj.bias]),
        bias_k=None,
        bias_v=None,
        add_zero_attn=False,
        dropout_p=0.0,
        out_proj_weight=pooling.c_proj.weight,
        out_proj_bias=pooling.c_proj.bias,
        use_separate_proj_weight=True,
        training=False,
        need_weights=True,
        average_attn_weights=False,
    )
    return weights[:, :, 0]


@settings(max_examples=20, deadline=None)
@given(
    candidates=st.integers(1, 3),
    samples=st.integers(0, 4),
    grid=st.integers(1, 4),
    heads=st.sampled_from([1, 2, 8]),
)
def test_the_weights_are_open_clips_and_the_mean_tokens_own_falls_on_all_alike(
    candidates: int, samples: int, grid: int, heads: int
) -> None:
    layers = [layer(seed, grid, 64, heads).double() for seed in range(candidates)]
    maps = 3 * torch.randn(samples, grid * grid, 64, dtype=torch.float64)
    stacked = {name: torch.stack([state_of(one)[name] for one in layers]) for name in NAMES}
    pooling = AttentionPool(heads)

    found = pooling.attention(pooling.prepare(maps), stacked)

    assert found.shape == (candidates, samples, heads, grid * grid)
    for own, one in zip(found, layers, strict=True):
        expected = open_clips(one, maps) if samples else torch.empty(0, heads, grid * grid + 1)
        spread = expected[..., 1:] + expected[..., :1] / (grid * grid)
        assert torch.allclose(own, spread.to(own), rtol=1e-10, atol=1e-12)
    assert torch.allclose(found.sum(-1), torch.ones_like(found[..., 0]), rtol=1e-12)


def test_without_positions_the_weights_are_the_shares_in_the_pooled_value() -> None:
    """So that nothing is lost by spreading the mean token's weight."""
    pooling = layer(0).double()
    state = {name: tensor.unsqueeze(0) for name, tensor in state_of(pooling).items()}
    state["positional_embedding"] = torch.zeros_like(state["positional_embedding"])
    maps = one_batch()[0].double()
    tokens = POOL.prepare(maps)

    shares = POOL.attention(tokens, state)[0]  # [N, H, L]
    weight = state["v_proj.weight"][0].view(HEADS, -1, WIDTH)
    value = torch.einsum("nhc,hdc->nhd", shares @ maps, weight)
    value = value.flatten(1) + state["v_proj.bias"]
    output = functional.linear(value, state["c_proj.weight"][0], state["c_proj.bias"][0])
    assert torch.allclose(output, POOL.pool(tokens, state)[0], rtol=1e-10, atol=1e-12)


def test_a_head_of_low_rank_looks_where_the_merged_one_does() -> None:
    original = state_of(layer(0))
    names = weights_of(NAMES, original)
    [factors] = beginning(original, names, [2], seed=1)
    factors = {name: tensor + 0.05 * torch.randn_like(tensor) for name, tensor in factors.items()}
    state = {name: t.unsqueeze(0) for name, t in {**original, **factors}.items()}
    form = LowRank(POOL, names)
    tokens = form.prepare(one_batch()[0])

    found = form.attention(tokens, state)

    assert torch.equal(found, POOL.attention(tokens, merged(state)))
    plain = {name: tensor.unsqueeze(0) for name, tensor in original.items()}
    assert not torch.allclose(found, POOL.attention(tokens, plain), atol=1e-3)
    assert found.shape[-1] == GRID * GRID
