"""Families are found by looking at a tower; a pooling travels as JSON; vmap is the default form."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from open_clip.modified_resnet import AttentionPool2d
from torch import nn

from safe_ray.errors import InputError
from safe_ray.poolings import find_pooling, from_json, pool_each, to_json
from safe_ray.poolings.base import families
from safe_ray.poolings.modified_resnet import AttentionPool
from tests.heads.test_bank import DIM, GRID, HEADS, NAMES, POOL, WIDTH, as_image, layer, state_of

FAMILY = """
class Mean:
    groups = ("weight",)
    inert = frozenset()

    @classmethod
    def matches(cls, visual):
        return hasattr(visual, "plain")

POOLING = Mean
"""


def test_every_family_of_the_package_is_found() -> None:
    assert AttentionPool in list(families())


def test_a_tower_that_no_family_knows_has_no_pooling() -> None:
    assert find_pooling(nn.Linear(2, 2)) is None


def test_a_family_outside_the_package_is_named_by_its_module(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a_family_of_my_own.py").write_text(FAMILY)
    monkeypatch.syspath_prepend(tmp_path)
    tower = nn.Linear(2, 2)
    assert find_pooling(tower, "a_family_of_my_own") is None
    tower.plain = True
    found = find_pooling(tower, "a_family_of_my_own")
    assert found is not None
    assert found.__name__ == "Mean"


@pytest.mark.parametrize(
    ("module", "words"),
    [("no_such_module_here", "cannot be imported"), ("json", "defines no POOLING")],
)
def test_a_module_that_has_no_family_is_refused(module: str, words: str) -> None:
    with pytest.raises(InputError, match=words):
        find_pooling(nn.Linear(2, 2), module)


def test_a_pooling_travels_as_json() -> None:
    described = json.loads(json.dumps(to_json(POOL)))
    assert described == {"module": "safe_ray.poolings.modified_resnet", "num_heads": HEADS}
    assert from_json(described) == POOL


def test_the_default_form_is_the_layer_of_each_head() -> None:
    layers = [layer(seed).double() for seed in range(3)]
    maps = torch.randn(5, GRID * GRID, WIDTH, dtype=torch.float64)
    stacked = {name: torch.stack([state_of(one)[name] for one in layers]) for name in NAMES}

    plain = AttentionPool2d(GRID, WIDTH, HEADS, DIM).double()

    def pool_one(tokens: torch.Tensor, state: dict[str, torch.Tensor]) -> torch.Tensor:
        called: torch.Tensor = torch.func.functional_call(plain, state, (as_image(tokens, GRID),))
        return called

    expected = torch.stack([one(as_image(maps, GRID)) for one in layers])
    assert torch.allclose(pool_each(pool_one, maps, stacked), expected, rtol=1e-10, atol=1e-12)
    assert torch.allclose(POOL.pool(POOL.prepare(maps), stacked), expected, rtol=1e-10, atol=1e-12)
