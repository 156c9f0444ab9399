"""timm's ResNets with CLIP's pooling are open_clip's under other names."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from timm.layers import RotAttentionPool2d
from torch import Tensor, nn

from safe_ray.heads.bank import Bank
from safe_ray.heads.optimiser import BankOptimiser
from safe_ray.heads.step import AutogradStep, FusedStep
from safe_ray.poolings import find_pooling, from_json, to_json
from safe_ray.poolings.base import select_parameters
from safe_ray.poolings.low_rank import LowRank, beginning, merged, weights_of
from safe_ray.poolings.timm_resnet import TimmAttentionPool
from tests.heads.test_bank import as_image
from tests.poolings.towers import (
    DIM,
    SIZE,
    assert_pools_as_open_clip,
    cut_copy,
    encode,
    images,
    several,
    small_model,
    stacked,
)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return small_model(tmp_path_factory.mktemp("models"), "resnet")


def test_the_cut_tower_is_open_clips(model: Any) -> None:
    pixels = images()
    cut = cut_copy(TimmAttentionPool, model)
    maps = cut.trunk(pixels)
    assert maps.shape == (3, cut.tokens, cut.width) == (3, 4, 256)
    assert cut.embed_dim == DIM
    assert_pools_as_open_clip(cut, model, pixels, maps)


def test_a_head_loads_into_the_tower_by_its_own_names(model: Any) -> None:
    changed, pixels = copy.deepcopy(model), images()
    cut = cut_copy(TimmAttentionPool, model)
    assert cut.prefix == "visual.trunk.head."
    head = several(cut.state, 1)
    pooled = cut.pooling.pool(cut.pooling.prepare(cut.trunk(pixels)), head)[0]
    named = {cut.prefix + name: tensor[0] for name, tensor in head.items()}
    assert not changed.load_state_dict(named, strict=False).unexpected_keys
    assert torch.allclose(encode(changed, pixels), pooled, rtol=1e-10, atol=1e-12)


def test_values_and_gradients_are_those_of_timms_layer(model: Any) -> None:
    cut, layer = cut_copy(TimmAttentionPool, model), copy.deepcopy(model.visual.trunk.head)
    maps = torch.randn(3, cut.tokens, cut.width, dtype=torch.float64)
    fast = {name: t.requires_grad_() for name, t in several(cut.state, 2).items()}
    found = cut.pooling.pool(cut.pooling.prepare(maps), fast)
    target = torch.randn(found.shape, dtype=torch.float64)
    (found * target).sum().backward()
    for index in range(2):
        head = {n: t.detach()[index].clone().requires_grad_() for n, t in fast.items()}
        expected = torch.func.functional_call(layer, head, (as_image(maps, 2),))
        assert torch.allclose(found[index], expected, rtol=1e-9, atol=1e-11)
        (expected * target[index]).sum().backward()
        for name, tensor in head.items():
            assert torch.allclose(fast[name].grad[index], tensor.grad, rtol=1e-8, atol=1e-10), name
    assert fast["k.bias"].grad.abs().max() == 0
    in_graph = cut.pooling.pool_in_graph(maps, fast)
    assert torch.allclose(in_graph, found, rtol=1e-9, atol=1e-11)


def test_the_hand_written_step_is_the_graphs(model: Any) -> None:
    """As a whole: AdamW makes a step of an entry whose gradient is of the size of rounding."""
    cut, generator = cut_copy(TimmAttentionPool, model), torch.Generator().manual_seed(3)
    maps = torch.randn(8, cut.tokens, cut.width, generator=generator)
    labels = torch.arange(8) % 5
    classifier = nn.functional.normalize(torch.randn(5, DIM, generator=generator), dim=-1)
    assert cut.pooling.activation_bytes(stacked([cut.state]), 8) > 0
    for groups in ("all", ["v", "proj"], ["pos_embed"]):
        trained = select_parameters(cut.pooling, groups, tuple(cut.state))
        banks = []
        for by_hand in (False, True):
            bank = Bank([cut.state] * 2, cut.pooling, trained, classifier, 20.0)
            optimiser = BankOptimiser(bank, [0.1, 0.0])
            step = cut.pooling.step(bank, optimiser) if by_hand else AutogradStep(bank, optimiser)
            assert isinstance(step, FusedStep if by_hand else AutogradStep)
            for _ in range(5):
                step(cut.pooling.prepare(maps), labels, torch.full((2, 8), 1 / 8), [1e-3, 3e-4])
            banks.append(bank)
        for name, expected in banks[0].head(0).items():
            found, change = banks[1].head(0)[name], expected - cut.state[name].float()
            assert (found - expected).norm() <= 1e-3 * change.norm(), name
            assert bool(change.any()) == (name in trained and name != "k.bias"), name


def test_updates_of_low_rank_are_those_of_merged_weights(model: Any) -> None:
    cut = cut_copy(TimmAttentionPool, model)
    names = weights_of(tuple(cut.state), cut.state)
    assert set(names) == {"q.weight", "k.weight", "v.weight", "proj.weight"}
    factors = stacked(beginning(cut.state, names, [2, 3], seed=1))
    factors = {n: (t + 0.1 * torch.randn_like(t)).double() for n, t in factors.items()}
    state = {**{n: t.expand(2, *t.shape) for n, t in cut.state.items()}, **factors}
    tokens = cut.pooling.prepare(torch.randn(3, cut.tokens, cut.width, dtype=torch.float64))
    found = LowRank(cut.pooling, names).pool(tokens, state)
    assert torch.allclose(found, cut.pooling.pool(tokens, merged(state)), rtol=1e-9, atol=1e-11)


def test_the_attention_adds_up_to_one_over_the_grid(model: Any) -> None:
    cut = cut_copy(TimmAttentionPool, model)
    tokens = cut.pooling.prepare(torch.randn(3, cut.tokens, cut.width, dtype=torch.float64))
    found = cut.pooling.attention(tokens, several(cut.state, 2))
    assert found.shape == (2, 3, cut.pooling.num_heads, 4)
    assert torch.allclose(found.sum(-1), torch.ones_like(found[..., 0]), rtol=1e-12)


def test_a_pooling_travels_as_json(model: Any) -> None:
    pooling = cut_copy(TimmAttentionPool, model).pooling
    assert from_json(json.loads(json.dumps(to_json(pooling)))) == pooling


def rotary(visual: Any) -> None:
    visual.trunk.head = RotAttentionPool2d(256, DIM, ref_feat_size=2)


def projected(visual: Any) -> None:
    visual.head.append(nn.Linear(DIM, DIM))


@pytest.mark.parametrize(
    ("change", "size", "words"),
    [
        (rotary, SIZE, "rotary"),
        (projected, SIZE, "Linear follow its pooling"),
        (lambda visual: visual.trunk.head.reset(0), SIZE, "and 'token' are known"),
        (lambda visual: None, 96, "makes 3x3 tokens, but its pooling expects 2x2"),
        (lambda visual: None, 80, "a multiple of 32"),
    ],
)
def test_a_pooling_that_is_another_function_is_refused(
    model: Any, change: Any, size: int, words: str
) -> None:
    visual = copy.deepcopy(model.visual)
    change(visual)
    assert find_pooling(visual) is TimmAttentionPool
    with pytest.raises(ValueError, match=words):
        TimmAttentionPool.cut(visual, size)


def test_a_pooling_on_top_of_another_tower_of_timms(tmp_path: Path) -> None:
    """Its queries, keys and values are one matrix there."""
    vision = {"timm_model_name": "test_byobnet", "timm_pool": "abs_attn", "timm_proj": ""}
    visual = small_model(tmp_path, "resnet", **vision, image_size=160).visual
    assert find_pooling(visual) is TimmAttentionPool
    with pytest.raises(ValueError, match=r"qkv\.weight"):
        TimmAttentionPool.cut(visual, 160)


def test_the_names_are_one_to_one(model: Any) -> None:
    """What was tuned as a head of one is a head of the other."""
    from safe_ray.poolings.modified_resnet import AttentionPool
    from safe_ray.poolings.timm_resnet import _translated

    cut = cut_copy(TimmAttentionPool, model)
    tokens: Tensor = cut.pooling.prepare(torch.randn(2, 4, 256, dtype=torch.float64))
    state = stacked([cut.state])
    assert set(_translated(state)) >= {"positional_embedding", "c_proj.bias", "k_proj.weight"}
    open_clips = AttentionPool(cut.pooling.num_heads).pool(tokens, _translated(state))
    assert torch.equal(cut.pooling.pool(tokens, state), open_clips)
