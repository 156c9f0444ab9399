"""The class token's last block: open_clip's and timm's own, in fewer products."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from open_clip.timm_model import TimmModel
from open_clip.transformer import VisionTransformer
from timm.models.eva import Eva
from torch import Tensor, nn

from safe_ray.errors import InputError
from safe_ray.poolings import Cut, find_pooling, from_json, pool_each, to_json
from safe_ray.poolings.base import leading_of, select_parameters
from safe_ray.poolings.last_block import LastBlock
from safe_ray.poolings.timm_last_block import TimmLastBlock
from tests.backbones.towers import SIDE, TOWERS, tower

CANDIDATES, SAMPLES = 3, 4

pytestmark = pytest.mark.filterwarnings("ignore:There is a performance drop")
CLASS_TOKEN = [name for name, kind in TOWERS.items() if kind in (LastBlock, TimmLastBlock)]


class Tail(nn.Module):
    """The library's own block on all tokens, and what follows it."""

    def __init__(self, visual: Any) -> None:
        super().__init__()
        self.visual = visual

    def forward(self, maps: Tensor) -> Tensor:
        visual = self.visual
        if isinstance(visual, VisionTransformer):
            out: Tensor = visual.ln_post(visual.transformer.resblocks[-1](maps))[:, 0] @ visual.proj
            return out
        trunk = visual.trunk
        last: Tensor = trunk.forward_head(trunk.norm(trunk.blocks[-1](maps)))
        return last


def cut_of(name: str) -> tuple[nn.Module, Cut]:
    """Return a tower with random weights in float64, and a copy of it cut."""
    visual = tower(name)
    spent = copy.deepcopy(visual)
    family = find_pooling(spent)
    assert family is TOWERS[name]
    return visual, family.cut(spent, SIDE)


def stacked(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return {
        name: torch.stack(
            [
                tensor + 0.1 * torch.randn(tensor.shape, generator=generator, dtype=tensor.dtype)
                for _ in range(CANDIDATES)
            ]
        )
        for name, tensor in state.items()
    }


def library(visual: nn.Module, maps: Tensor, state: Mapping[str, Tensor]) -> Tensor:
    """Pool by the library's layer, the default form of a bank."""
    # In eval mode torch takes a path for attention that has no derivative; nothing is dropped here.
    layer = Tail(visual).train()

    def pool_one(tokens: Tensor, one: Mapping[str, Tensor]) -> Tensor:
        named = {f"visual.{name}": tensor for name, tensor in one.items()}
        called: Tensor = torch.func.functional_call(layer, named, (tokens,))
        return called

    return pool_each(pool_one, maps, state)


@pytest.fixture(params=CLASS_TOKEN)
def drawn(request: pytest.FixtureRequest) -> tuple[nn.Module, Cut, Tensor]:
    visual, cut = cut_of(request.param)
    generator = torch.Generator().manual_seed(2)
    maps = torch.randn(SAMPLES, cut.tokens, cut.width, generator=generator, dtype=torch.float64)
    return visual, cut, 3 * maps + 1


def test_the_absorbed_form_is_the_librarys_block_in_values_and_gradients(
    drawn: tuple[nn.Module, Cut, Tensor],
) -> None:
    visual, cut, maps = drawn
    state = {name: t.requires_grad_() for name, t in stacked(cut.state).items()}
    ours = cut.pooling.pool(cut.pooling.prepare(maps), state)
    theirs = library(visual, maps, state)
    assert ours.shape == (CANDIDATES, SAMPLES, cut.embed_dim)
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
    weights = torch.randn(ours.shape, dtype=torch.float64)
    mine, wanted = (
        torch.autograd.grad((out * weights).sum(), list(state.values())) for out in (ours, theirs)
    )
    for name, one, other in zip(state, mine, wanted, strict=True):
        scale = float(other.abs().max())
        assert float((one - other).abs().max()) <= 1e-11 * max(scale, 1e-3), name


def test_all_heads_at_once_are_the_heads_one_by_one(drawn: tuple[nn.Module, Cut, Tensor]) -> None:
    _, cut, maps = drawn
    state, tokens = stacked(cut.state), cut.pooling.prepare(maps)
    single = [
        cut.pooling.pool(tokens, {name: tensor[k : k + 1] for name, tensor in state.items()})
        for k in range(CANDIDATES)
    ]
    together = cut.pooling.pool(tokens, state)
    torch.testing.assert_close(together, torch.cat(single), rtol=1e-12, atol=1e-12)


def test_attention_is_a_share_of_every_token_and_the_class_token_comes_first(
    drawn: tuple[nn.Module, Cut, Tensor],
) -> None:
    _, cut, maps = drawn
    pooling: Any = cut.pooling
    weights = pooling.attention(pooling.prepare(maps), stacked(cut.state))
    assert weights.shape == (CANDIDATES, SAMPLES, pooling.num_heads, cut.tokens)
    assert float(weights.min()) >= 0
    torch.testing.assert_close(weights.sum(-1), torch.ones_like(weights[..., 0]))
    assert leading_of(pooling) == 1


def test_attention_is_open_clips_own() -> None:
    visual, cut = cut_of("vit")
    maps = torch.randn(SAMPLES, cut.tokens, cut.width, dtype=torch.float64)
    block: Any = visual.transformer.resblocks[-1]  # type: ignore[union-attr]
    inputs = block.ln_1(maps)
    _, wanted = block.attn(inputs, inputs, inputs, average_attn_weights=False)
    state = {name: tensor.unsqueeze(0) for name, tensor in cut.state.items()}
    found = cut.pooling.attention(cut.pooling.prepare(maps), state)[0]
    torch.testing.assert_close(found, wanted[:, :, 0], rtol=1e-10, atol=1e-12)


def test_every_parameter_belongs_to_a_part(drawn: tuple[nn.Module, Cut, Tensor]) -> None:
    _, cut, _ = drawn
    names = tuple(cut.state)
    parts = [select_parameters(cut.pooling, [part], names) for part in cut.pooling.groups]
    assert sorted(name for part in parts for name in part) == sorted(names)
    assert all(parts)
    assert select_parameters(cut.pooling, "all", names) == names


@pytest.mark.parametrize(
    ("name", "wanted"),
    [("vit", ("proj",)), ("timm vit", ("trunk.head.weight", "trunk.head.bias"))],
)
def test_the_projection_has_one_word_in_all_families(name: str, wanted: tuple[str, ...]) -> None:
    _, cut = cut_of(name)
    assert select_parameters(cut.pooling, ["projection"], tuple(cut.state)) == wanted


def test_an_unknown_part_names_those_that_there_are() -> None:
    _, cut = cut_of("vit")
    with pytest.raises(InputError, match=r"choose among attention, mlp, ln_post, proj, projection"):
        select_parameters(cut.pooling, ["c_proj"], tuple(cut.state))


def test_it_travels_as_json() -> None:
    _, cut = cut_of("vit scaled")
    described = json.loads(json.dumps(to_json(cut.pooling)))
    assert described["activation"] == "gelu_tanh"
    assert from_json(described) == cut.pooling


def test_maps_in_half_precision_are_pooled_in_single() -> None:
    _, cut = cut_of("vit")
    tokens = cut.pooling.prepare(torch.randn(2, cut.tokens, cut.width).half())
    assert tokens.dtype == torch.float32


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"image_size": 36}, "do not divide an image_size of 36"),
        ({"norm": nn.BatchNorm1d(32)}, "LayerNorms of one epsilon"),
        ({"activation": nn.ReLU()}, "the activation ReLU"),
    ],
)
def test_a_block_that_the_family_does_not_know_is_refused(
    change: dict[str, Any], words: str
) -> None:
    visual: Any = tower("vit")
    if "norm" in change:
        visual.ln_post = change["norm"]
    if "activation" in change:
        visual.transformer.resblocks[-1].mlp.gelu = change["activation"]
    with pytest.raises(ValueError, match=words):
        LastBlock.cut(visual, change.get("image_size", SIDE))


def test_a_block_of_another_make_is_not_claimed() -> None:
    custom = VisionTransformer(SIDE, 8, 32, 2, 4, 2.0, output_dim=24, qk_norm=True)
    rotated = tower("timm eva")
    assert isinstance(rotated, TimmModel)
    assert isinstance(rotated.trunk, Eva)
    assert TimmLastBlock.matches(rotated)
    rotated.trunk.rope = nn.Identity()
    assert not LastBlock.matches(custom)
    assert not TimmLastBlock.matches(rotated)
