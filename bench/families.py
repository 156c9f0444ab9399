"""The sides of the families' benches: a step of a bank, and of the library's own layers."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import timm
import torch
from open_clip.model import CLIPVisionCfg
from open_clip.timm_model import TimmModel
from open_clip.transformer import VisionTransformer
from torch import Tensor, nn
from torch.nn import functional

from bench.harness import Side, check_close, finish, interleave
from bench.pooling import bank_step, usual_step
from safe_ray.poolings.base import find_pooling

_BATCH, _CLASSES = 64, 100
_QUICK = {"side": 32, "width": 32, "heads": 2, "output": 16}
_B16 = {"side": 224, "width": 768, "heads": 12, "output": 512}
_PATCH = 16


def last_block(quick: bool) -> VisionTransformer:
    """Return CLIP's ViT-B/16, of which no block is built but the last."""
    size = _QUICK if quick else _B16
    return VisionTransformer(
        size["side"], _PATCH, size["width"], 1, size["heads"], 4.0, output_dim=size["output"]
    )


def coca(quick: bool) -> VisionTransformer:
    """Return CoCa's tower at B/16, of one block, with as many queries as open_clip's have."""
    size, usual = _QUICK if quick else _B16, CLIPVisionCfg()
    return VisionTransformer(
        size["side"],
        _PATCH,
        size["width"],
        1,
        size["heads"],
        4.0,
        attentional_pool=True,
        attn_pooler_queries=8 if quick else usual.attn_pooler_queries,
        attn_pooler_heads=size["heads"] if quick else usual.attn_pooler_heads,
        output_dim=size["output"],
    )


def latent(quick: bool) -> TimmModel:
    """Return SigLIP's ViT-B/16, of one block."""
    size = _QUICK if quick else _B16
    tower = TimmModel("vit_base_patch16_siglip_224", size["width"], pool="map", proj="none")
    tower.trunk = timm.create_model(
        "vit_base_patch16_siglip_224",
        img_size=size["side"],
        depth=1,
        embed_dim=size["width"],
        num_heads=size["heads"],
        num_classes=0,
    )
    return tower


def _blocks(visual: Any, maps: Tensor) -> Tensor:
    out: Tensor = visual.ln_post(visual.transformer.resblocks[-1](maps))[:, 0] @ visual.proj
    return out


def _pooler(visual: Any, maps: Tensor) -> Tensor:
    out: Tensor = visual.ln_post(visual.attn_pool(maps))[:, 0] @ visual.proj
    return out


def _map(trunk: Any, maps: Tensor) -> Tensor:
    out: Tensor = trunk.head(trunk.attn_pool(maps))
    return out


@dataclass(frozen=True)
class Family:
    """A family at B/16.

    Attributes:
        build: its tower.
        part: the module of the tower in which its parameters have their names.
        pool: what the library computes behind the trunk, of that module and dense maps.
    """

    build: Callable[[bool], nn.Module]
    part: str
    pool: Callable[[Any, Tensor], Tensor]


FAMILIES = {
    "last_block": Family(last_block, "", _blocks),
    "latent_attention": Family(latent, "trunk", _map),
    "coca": Family(coca, "", _pooler),
}


class Problem:
    """One batch of a family at its size, and the sides that train on it from the same weights."""

    def __init__(self, name: str, quick: bool) -> None:
        family = FAMILIES[name]
        self._pool = family.pool
        visual = family.build(quick)
        # In eval mode torch takes a path for attention that has no derivative.
        self._library = copy.deepcopy(visual.get_submodule(family.part)).train()
        found = find_pooling(visual)
        assert found is not None
        self.cut = found.cut(visual, (_QUICK if quick else _B16)["side"])
        batch, classes = (4, 3) if quick else (_BATCH, _CLASSES)
        self.maps = torch.randn(batch, self.cut.tokens, self.cut.width)
        self.labels = torch.randint(classes, (batch,))
        self.classifier = functional.normalize(torch.randn(classes, self.cut.embed_dim), dim=-1)

    def usual(self) -> tuple[Callable[[], Tensor], nn.Module, torch.optim.AdamW]:
        """One head in the library's layers."""
        layer = copy.deepcopy(self._library)
        own = {name: p for name, p in layer.named_parameters() if name in self.cut.state}
        step, optimiser = usual_step(
            lambda: self._pool(layer, self.maps), own.values(), self.labels, self.classifier
        )
        return step, layer, optimiser

    def bank(self, candidates: int) -> Any:
        """A bank of K heads."""
        heads = [self.cut.state] * candidates
        return bank_step(self.cut.pooling, heads, self.maps, self.labels, self.classifier)

    def check(self) -> None:
        """Stop unless both sides have the same losses, before and after a step, and gradients."""
        step, _, optimiser = self.bank(2)
        usual, layer, adamw = self.usual()
        expected = [usual(), usual()]
        for mine, theirs in zip([step(), step()], expected, strict=True):
            check_close("the loss", mine, theirs.expand(2), 1e-4)
        whole = dict(layer.named_parameters())
        for first in (moments.first for moments in optimiser.moments()):
            for name, mine in first.items():
                theirs = adamw.state[whole[name]]["exp_avg"]
                # What cancels in a softmax has a gradient of rounding alone.
                if float(theirs.abs().max()) > 1e-6:
                    check_close(f"the gradient of {name}", mine, theirs, 1e-3)


def compare(bench: str, name: str, target: float, repeats: int, quick: bool) -> None:
    """Time a step a head against the library's, for some K, and print the result."""
    problem = Problem(name, quick)
    problem.check()
    counts = (1, 2) if quick else (1, 4, 8)
    sides: dict[str, Side] = {"library": problem.usual()[0]}
    sides |= {f"K={count}": problem.bank(count)[0] for count in counts}
    medians = interleave(sides, 1 if quick else repeats)
    library = medians["library"]
    print(f"a step a head: the library's {1e3 * library:.1f} ms")
    ratios = {count: library / (medians[f"K={count}"] / count) for count in counts}
    for count, ratio in ratios.items():
        print(f"K={count}: {1e3 * medians[f'K={count}'] / count:.2f} ms, {ratio:.1f} x the library")
    finish(
        bench,
        min(ratios.values()),
        target,
        ratio_by_heads={str(count): round(ratio, 2) for count, ratio in ratios.items()},
        step_ms={str(c): round(1e3 * medians[f"K={c}"] / c, 2) for c in counts},
        library_ms=round(1e3 * library, 2),
        tuned=sum(tensor.numel() for tensor in problem.cut.state.values()),
        view_bytes=2 * problem.cut.tokens * problem.cut.width,
    )
