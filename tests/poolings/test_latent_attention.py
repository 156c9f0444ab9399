"""MAP pooling: SigLIP's, SigLIP 2's and PE-Core's towers are cut, and pooled as open_clip does."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from safe_ray.errors import InputError
from safe_ray.heads.bank import Bank
from safe_ray.heads.gradients import Workspace, layers_of, shape_block
from safe_ray.heads.optimiser import BankOptimiser
from safe_ray.heads.step import AutogradStep, FusedStep
from safe_ray.poolings import find_pooling, from_json, pool_each, to_json
from safe_ray.poolings.base import HeadState, leading_of, select_parameters
from safe_ray.poolings.latent_attention import LatentAttention
from safe_ray.poolings.latent_step import LatentHead
from safe_ray.poolings.layers import ACTIVATIONS
from tests.poolings.towers import (
    DIM,
    SIZE,
    assert_pools_as_open_clip,
    cut_copy,
    encode,
    images,
    several,
    small_model,
)

# Tokens before those of the grid that the pooling is shown.
LEADING = {"siglip": 0, "registers": 0, "shown": 3, "register": 1, "pe": 1}
KINDS = list(LEADING)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("models")
    return {kind: small_model(folder, kind) for kind in KINDS}


def library(model: Any) -> Any:
    """Return timm's pooling and head as a function of tokens and one state."""
    tower = model.visual.trunk
    tower.attn_pool.fused_attn = False

    class Behind(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attn_pool, self.head = tower.attn_pool, tower.head

        def forward(self, tokens: Tensor) -> Tensor:
            pooled: Tensor = self.head(self.attn_pool(tokens))
            return pooled

    behind = Behind()

    def pool_one(tokens: Tensor, state: HeadState) -> Tensor:
        pooled: Tensor = torch.func.functional_call(behind, dict(state), (tokens,))
        return pooled

    return pool_one


@pytest.mark.parametrize("kind", KINDS)
def test_the_cut_tower_is_open_clips(models: dict[str, Any], kind: str) -> None:
    model, pixels = models[kind], images()
    cut = cut_copy(LatentAttention, model)
    maps = cut.trunk(pixels)
    assert maps.shape == (len(pixels), cut.tokens, cut.width)
    assert cut.tokens == 16 + LEADING[kind]
    assert leading_of(cut.pooling) == LEADING[kind]
    assert_pools_as_open_clip(cut, model, pixels, maps)


@pytest.mark.parametrize("kind", KINDS)
def test_a_head_loads_into_the_tower_by_its_own_names(models: dict[str, Any], kind: str) -> None:
    model, pixels = models[kind], images()
    cut = cut_copy(LatentAttention, model)
    head = several(cut.state, 1)
    named = {cut.prefix + name: tensor[0] for name, tensor in head.items()}
    changed = cut.pooling.pool(cut.pooling.prepare(cut.trunk(pixels)), head)[0]
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    found = model.load_state_dict(named, strict=False)
    try:
        assert not found.unexpected_keys
        assert torch.allclose(encode(model, pixels), changed, rtol=1e-10, atol=1e-12)
    finally:
        model.load_state_dict(before)


@settings(max_examples=10, deadline=None)
@given(
    candidates=st.integers(1, 3), samples=st.integers(0, 4), kind=st.sampled_from(["pe", "siglip"])
)
def test_values_and_gradients_are_those_of_timms_layer(
    models: dict[str, Any], candidates: int, samples: int, kind: str
) -> None:
    """A worker of several may have no sample in a batch, so there may be none."""
    cut = cut_copy(LatentAttention, models[kind])
    state = several(cut.state, candidates)
    maps = torch.randn(samples, cut.tokens, cut.width, dtype=torch.float64)
    plain, fast = (
        {name: tensor.clone().requires_grad_() for name, tensor in state.items()} for _ in range(2)
    )
    expected = pool_each(library(models[kind]), maps, plain)
    found = cut.pooling.pool(cut.pooling.prepare(maps), fast)
    assert torch.allclose(found, expected, rtol=1e-10, atol=1e-11)

    target = torch.randn(found.shape, dtype=torch.float64)
    (expected * target).sum().backward()
    (found * target).sum().backward()
    for name, tensor in plain.items():
        assert torch.allclose(fast[name].grad, tensor.grad, rtol=1e-8, atol=1e-10), name
    keys = fast["attn_pool.kv.bias"].grad[:, : cut.width]
    assert torch.equal(keys, torch.zeros_like(keys))


@pytest.mark.parametrize("kind", ["registers", "pe"])
def test_the_attention_is_what_timms_layer_weighs_values_with(
    models: dict[str, Any], kind: str
) -> None:
    """A token's share is what the pooled value changes by with its value, keys being equal."""
    cut = cut_copy(LatentAttention, models[kind])
    state = several(cut.state, 2)
    maps = torch.randn(3, cut.tokens, cut.width, dtype=torch.float64)
    weights = cut.pooling.attention(cut.pooling.prepare(maps), state)
    assert weights.shape == (2, 3, 4, cut.tokens)
    assert weights.min() >= 0
    assert torch.allclose(weights.sum(-1), torch.ones(2, 3, 4, dtype=torch.float64), rtol=1e-12)

    for index, own in enumerate(weights):
        head = {name.removeprefix("attn_pool."): t[index] for name, t in state.items()}
        query = head["latent"][0, 0] @ head["q.weight"].t() + head["q.bias"]
        key = maps @ head["kv.weight"][: cut.width].t() + head["kv.bias"][: cut.width]
        scores = torch.einsum("hd,nlhd->nhl", query.view(4, -1), key.view(3, cut.tokens, 4, -1))
        expected = torch.softmax(scores * (cut.width / 4) ** -0.5, -1)
        assert torch.allclose(own, expected, rtol=1e-10, atol=1e-12)


def test_a_pooling_travels_as_json(models: dict[str, Any]) -> None:
    pooling = cut_copy(LatentAttention, models["pe"]).pooling
    described = json.loads(json.dumps(to_json(pooling)))
    assert from_json(described) == pooling
    with pytest.raises(InputError, match="'tanh' is not among gelu"):
        from_json({**described, "activation": "tanh"})


def test_parts_are_chosen_by_the_towers_words(models: dict[str, Any]) -> None:
    pe, siglip = (cut_copy(LatentAttention, models[kind]) for kind in ("pe", "siglip"))
    names = tuple(pe.state)
    assert set(select_parameters(pe.pooling, "all", names)) == set(names)
    assert select_parameters(pe.pooling, ["mlp"], names) == tuple(n for n in names if "mlp" in n)
    assert select_parameters(pe.pooling, ["proj", "head"], names) == (
        "attn_pool.proj.weight",
        "attn_pool.proj.bias",
        "head.weight",
        "head.bias",
    )
    with pytest.raises(
        InputError, match=r"names \['head'\].*choose among latent, q, .*mlp, queries, or"
    ):
        select_parameters(siglip.pooling, ["head"], tuple(siglip.state))


def test_a_bank_of_such_heads_learns(models: dict[str, Any]) -> None:
    cut = cut_copy(LatentAttention, models["pe"])
    assert cut.pooling.activation_bytes(cut.state, 8) > 0
    names = select_parameters(cut.pooling, "all", tuple(cut.state))
    generator = torch.Generator().manual_seed(3)
    classifier = torch.nn.functional.normalize(torch.randn(5, DIM, generator=generator), dim=-1)
    bank = Bank([cut.state] * 2, cut.pooling, names, classifier, 20.0)
    optimiser = BankOptimiser(bank, [0.0, 0.1])
    step = cut.pooling.step(bank, optimiser)
    assert step is not None
    tokens = cut.pooling.prepare(torch.randn(8, cut.tokens, cut.width, generator=generator))
    labels, weights = torch.arange(8) % 5, torch.full((2, 8), 1 / 8)
    losses = [step(tokens, labels, weights, [1e-3, 3e-3]) for _ in range(15)]
    assert (losses[-1] < 0.7 * losses[0]).all()


@pytest.mark.parametrize("activation", list(ACTIVATIONS))
@pytest.mark.parametrize("kind", ["siglip", "pe"])
def test_the_written_out_gradients_are_those_of_timms_layer(
    models: dict[str, Any], kind: str, activation: str
) -> None:
    cut = cut_copy(LatentAttention, models[kind])
    pooling: Any = replace(cut.pooling, activation=activation)  # type: ignore[type-var]
    single = LatentHead(pooling.num_heads, activation, pooling.epsilon)
    tokens = torch.randn(3, cut.tokens, cut.width, dtype=torch.float64)
    state = {name: tensor.clone().requires_grad_() for name, tensor in cut.state.items()}
    expected = pooling.pool(tokens, {name: t.unsqueeze(0) for name, t in state.items()})[0]
    if activation == pooling.activation == cut.pooling.activation:
        timms = library(models[kind])(tokens, cut.state)
        torch.testing.assert_close(expected.detach(), timms, rtol=1e-10, atol=1e-11)
    target = torch.randn(expected.shape, dtype=torch.float64)
    (expected * target).sum().backward()
    plain = {name: tensor.detach() for name, tensor in state.items()}
    weights, room = single.weights(plain), single.room(tokens, Workspace())
    with torch.no_grad():
        found = single.pool(tokens, weights, room)
        gradients = Blocks(plain)
        single.differentiate(target, weights, room, gradients)
    torch.testing.assert_close(found, expected.detach(), rtol=1e-10, atol=1e-11)
    for name, tensor in state.items():
        torch.testing.assert_close(
            gradients.whole[name], tensor.grad, rtol=1e-8, atol=1e-10, msg=name
        )


class Blocks:
    """Gradients in blocks of three rows; a weight is spoiled once its gradient is asked for."""

    def __init__(self, head: dict[str, Tensor]) -> None:
        self.layers = layers_of(head)
        self.whole = {name: torch.full_like(tensor, float("nan")) for name, tensor in head.items()}
        self._head = head

    def blocks(self, name: str, unit: int = 0) -> Iterator[tuple[slice, Tensor]]:
        if name not in self.whole:
            return
        self._head[name].fill_(float("nan"))
        whole = shape_block(self.whole[name], unit)
        size = len(whole) if whole.dim() == 1 else 3
        for start in range(0, len(whole), size):
            rows = slice(start, min(len(whole), start + size))
            yield rows, whole[rows]


@pytest.mark.parametrize("parts", ["all", ["mlp"], ["head"], ["q", "latent", "norm"], ["kv"]])
def test_the_hand_written_step_is_the_graphs(models: dict[str, Any], parts: Any) -> None:
    """As a whole: AdamW makes a step of an entry whose gradient is of the size of rounding."""
    cut, generator = cut_copy(LatentAttention, models["pe"]), torch.Generator().manual_seed(3)
    maps = torch.randn(8, cut.tokens, cut.width, generator=generator)
    classifier = torch.nn.functional.normalize(torch.randn(5, DIM, generator=generator), dim=-1)
    trained = select_parameters(cut.pooling, parts, tuple(cut.state))
    banks = []
    for by_hand in (False, True):
        bank = Bank([cut.state] * 2, cut.pooling, trained, classifier, 20.0)
        optimiser = BankOptimiser(bank, [0.1, 0.0])
        step = cut.pooling.step(bank, optimiser) if by_hand else AutogradStep(bank, optimiser)
        assert isinstance(step, FusedStep if by_hand else AutogradStep)
        weights = torch.full((2, 8), 1 / 8)
        for _ in range(5):
            step(cut.pooling.prepare(maps), torch.arange(8) % 5, weights, [1e-3, 3e-4])
        banks.append(bank)
    for name, expected in banks[0].head(0).items():
        found, change = banks[1].head(0)[name], expected - cut.state[name].float()
        assert (found - expected).norm() <= 1e-3 * change.norm(), name
        assert bool(change.any()) == (name in trained), name


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda tower: setattr(tower.attn_pool, "pool", "avg"), "takes 'avg'"),
        (lambda tower: setattr(tower.attn_pool, "latent_len", 2), "has 2 latents"),
        (
            lambda tower: setattr(tower.attn_pool, "q_norm", torch.nn.LayerNorm(8)),
            r"q_norm\.bias, q_norm\.weight make the difference",
        ),
        (
            lambda tower: setattr(tower.attn_pool, "norm", torch.nn.RMSNorm(32)),
            r"norm\.bias make the difference",
        ),
        (lambda tower: setattr(tower.attn_pool, "mlp", None), "make the difference"),
        (lambda tower: setattr(tower.attn_pool.mlp, "act", torch.nn.ReLU()), "ReLU"),
        (lambda tower: setattr(tower, "fc_norm", torch.nn.LayerNorm(32)), "LayerNorm follow"),
        (lambda tower: tower.patch_embed.set_input_size(96), "not of an image_size of 64"),
    ],
)
def test_a_pooling_that_is_another_function_is_refused(
    models: dict[str, Any], change: Any, words: str
) -> None:
    visual = copy.deepcopy(models["siglip"].visual)
    change(visual.trunk)
    assert find_pooling(visual) is LatentAttention
    with pytest.raises(ValueError, match=words):
        LatentAttention.cut(visual, SIZE)


def test_a_projection_behind_the_tower_is_refused(tmp_path: Path) -> None:
    model = small_model(tmp_path, "siglip", timm_proj="linear")
    with pytest.raises(ValueError, match="Linear follow its pooling"):
        LatentAttention.cut(model.visual, SIZE)
