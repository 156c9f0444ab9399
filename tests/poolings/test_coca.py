"""CoCa's pooling: its first query alone makes the embedding, as open_clip does."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from safe_ray.errors import InputError
from safe_ray.poolings import find_pooling, from_json, pool_each, to_json
from safe_ray.poolings.base import HeadState, select_parameters
from safe_ray.poolings.coca import AttentionalPool
from tests.poolings.towers import (
    SIZE,
    assert_pools_as_open_clip,
    cut_copy,
    encode,
    images,
    several,
    small_model,
    stacked,
)

KINDS = ["coca", "square coca"]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("models")
    return {kind: small_model(folder, kind) for kind in KINDS}


class Library(torch.nn.Module):
    """open_clip's pooling and projection."""

    def __init__(self, visual: Any) -> None:
        super().__init__()
        self.attn_pool, self.ln_post, self.proj = visual.attn_pool, visual.ln_post, visual.proj

    def forward(self, tokens: Tensor) -> Tensor:
        pooled: Tensor = self.ln_post(self.attn_pool(tokens))[:, 0] @ self.proj
        return pooled


@pytest.mark.parametrize("kind", KINDS)
def test_the_cut_tower_is_open_clips(models: dict[str, Any], kind: str) -> None:
    model, pixels = models[kind], images()
    cut = cut_copy(AttentionalPool, model)
    maps = cut.trunk(pixels)
    assert maps.shape == (len(pixels), cut.tokens, cut.width) == (3, 17, cut.width)
    assert_pools_as_open_clip(cut, model, pixels, maps)


@pytest.mark.parametrize("kind", KINDS)
def test_a_head_loads_into_the_tower_by_its_own_names(models: dict[str, Any], kind: str) -> None:
    model, pixels = copy.deepcopy(models[kind]), images()
    cut = cut_copy(AttentionalPool, model)
    head = several(cut.state, 1)
    changed = cut.pooling.pool(cut.pooling.prepare(cut.trunk(pixels)), head)[0]
    named = {cut.prefix + name: tensor[0] for name, tensor in head.items()}
    assert not model.load_state_dict(named, strict=False).unexpected_keys
    assert torch.allclose(encode(model, pixels), changed, rtol=1e-10, atol=1e-12)


@settings(max_examples=8, deadline=None)
@given(candidates=st.integers(1, 3), samples=st.integers(0, 4), kind=st.sampled_from(KINDS))
def test_values_and_gradients_are_those_of_open_clips_layer(
    models: dict[str, Any], candidates: int, samples: int, kind: str
) -> None:
    """A worker of several may have no sample in a batch, so there may be none."""
    cut = cut_copy(AttentionalPool, models[kind])
    library = Library(copy.deepcopy(models[kind].visual))
    maps = 2 * torch.randn(samples, cut.tokens, cut.width, dtype=torch.float64) + 1
    state = several(cut.state, candidates)
    plain, fast = (
        {name: tensor.clone().requires_grad_() for name, tensor in state.items()} for _ in range(2)
    )
    found = cut.pooling.pool(cut.pooling.prepare(maps), fast)
    target = torch.randn(found.shape, dtype=torch.float64)
    (found * target).sum().backward()
    for index in range(candidates):
        head = {name: tensor[index] for name, tensor in plain.items()}
        expected = torch.func.functional_call(library, head, (maps,))
        assert torch.allclose(found[index], expected, rtol=1e-9, atol=1e-11)
        (expected * target[index]).sum().backward()
    for name, tensor in plain.items():
        assert torch.allclose(fast[name].grad, tensor.grad, rtol=1e-8, atol=1e-9), name
    others = fast["attn_pool.query"].grad[:, 1:]
    assert torch.equal(others, torch.zeros_like(others))
    keys = fast["attn_pool.attn.in_proj_bias"].grad.chunk(3, dim=1)[1]
    assert torch.equal(keys, torch.zeros_like(keys))


@pytest.mark.parametrize("kind", KINDS)
def test_the_stacked_form_is_the_pooling_of_each_head(models: dict[str, Any], kind: str) -> None:
    cut = cut_copy(AttentionalPool, models[kind])
    maps = torch.randn(2, cut.tokens, cut.width, dtype=torch.float64)
    tokens, state = cut.pooling.prepare(maps), several(cut.state, 3)

    def pool_one(tokens: Tensor, head: HeadState) -> Tensor:
        return cut.pooling.pool(tokens, {n: t.unsqueeze(0) for n, t in head.items()})[0]

    each = pool_each(pool_one, tokens, state)
    assert torch.allclose(cut.pooling.pool(tokens, state), each, rtol=1e-10, atol=1e-12)


def test_the_attention_is_that_of_open_clips_first_query(models: dict[str, Any]) -> None:
    cut = cut_copy(AttentionalPool, models["coca"])
    pooler = models["coca"].visual.attn_pool
    maps = torch.randn(3, cut.tokens, cut.width, dtype=torch.float64)
    found = cut.pooling.attention(cut.pooling.prepare(maps), stacked([cut.state]))
    queries = pooler.ln_q(pooler.query).expand(3, -1, -1)
    keys = pooler.ln_k(maps)
    _, expected = pooler.attn(queries, keys, keys, average_attn_weights=False)
    assert found.shape == (1, 3, 4, cut.tokens)
    assert torch.allclose(found[0], expected[:, :, 0], rtol=1e-9, atol=1e-12)
    assert torch.allclose(found.sum(-1), torch.ones(1, 3, 4, dtype=torch.float64), rtol=1e-12)


def test_a_pooling_travels_as_json(models: dict[str, Any]) -> None:
    pooling = cut_copy(AttentionalPool, models["coca"]).pooling
    assert from_json(json.loads(json.dumps(to_json(pooling)))) == pooling
    assert pooling.leading == 1


def test_parts_are_chosen_by_the_towers_words(models: dict[str, Any]) -> None:
    cut = cut_copy(AttentionalPool, models["coca"])
    names = tuple(cut.state)
    assert set(select_parameters(cut.pooling, "all", names)) == set(names)
    assert select_parameters(cut.pooling, ["proj"], names) == ("proj",)
    assert set(select_parameters(cut.pooling, ["ln_k", "query"], names)) == {
        "attn_pool.query",
        "attn_pool.ln_k.weight",
        "attn_pool.ln_k.bias",
    }
    with pytest.raises(InputError, match=r"names \['in_proj_weight'\]"):
        select_parameters(cut.pooling, ["in_proj_weight"], names)
    assert cut.pooling.activation_bytes(cut.state, 8) > 0


@pytest.mark.parametrize(
    ("vision", "words"),
    [
        ({"attentional_pool": "parallel"}, "of the kind 'parallel'"),
        ({"attentional_pool": "cascade", "width": 24, "head_width": 12}, "of the kind 'cascade'"),
        ({"pool_type": "avg"}, "pool_type is 'avg'"),
        ({"image_size": 96}, "not of an image_size of 64"),
    ],
)
def test_a_pooling_that_is_another_function_is_refused(
    tmp_path: Path, vision: dict[str, Any], words: str
) -> None:
    visual = small_model(tmp_path, "coca", **vision).visual
    assert find_pooling(visual) is AttentionalPool
    with pytest.raises(ValueError, match=words):
        AttentionalPool.cut(visual, SIZE)
