"""Small image towers with random weights, one of each make that the families know."""

from __future__ import annotations

from typing import Any

import torch
from open_clip.model import _build_vision_tower
from open_clip.timm_model import TimmModel
from timm.models.convnext import ConvNeXt
from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from safe_ray.poolings.last_block import LastBlock
from safe_ray.poolings.projection import Projection
from safe_ray.poolings.timm_last_block import TimmLastBlock

SIDE, EMBED = 32, 24
_VIT = {"image_size": SIDE, "patch_size": 8, "width": 32, "head_width": 8, "mlp_ratio": 2.0}
_PLAIN: dict[str, dict[str, Any]] = {
    "vit": {**_VIT, "layers": 2},
    "vit scaled": {
        **_VIT,
        "layers": 1,
        "ls_init_value": 0.3,
        "no_ln_pre": True,
        "norm_kwargs": {"eps": 1e-6},
        "act_kwargs": {"approximate": "tanh"},
    },
    "vit average": {**_VIT, "layers": 2, "pool_type": "avg", "final_ln_after_pool": True},
}
_TIMM: dict[str, Any] = {"img_size": SIDE, "patch_size": 8, "embed_dim": 32, "num_heads": 4}

TOWERS: dict[str, type[Any]] = {
    "vit": LastBlock,
    "vit quick": LastBlock,
    "vit scaled": LastBlock,
    "vit average": Projection,
    "timm vit": TimmLastBlock,
    "timm eva": TimmLastBlock,
    "timm convnext": Projection,
    "timm convnext mlp": Projection,
}


def tower(name: str) -> nn.Module:
    """Return the tower of that name, float64, in eval mode; nothing in it is idle."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        made = _made(name).double().eval()
        with torch.no_grad():
            for parameter in made.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
    return made


def _made(name: str) -> nn.Module:
    if not name.startswith("timm"):
        config = _PLAIN[name.removesuffix(" quick")]
        made: nn.Module = _build_vision_tower(EMBED, dict(config), name.endswith("quick"))
        return made
    if name == "timm vit":
        return _with_trunk(
            VisionTransformer(
                **_TIMM, depth=2, global_pool="token", num_classes=EMBED, init_values=0.3
            )
        )
    if name == "timm eva":
        return _with_trunk(
            Eva(
                **_TIMM,
                depth=2,
                global_pool="token",
                num_classes=EMBED,
                use_rot_pos_emb=False,
                init_values=0.3,
            )
        )
    trunk = ConvNeXt(depths=(1, 1, 1, 1), dims=(8, 12, 16, 20), num_classes=0)
    return _with_trunk(trunk, "mlp" if name.endswith("mlp") else "linear")


def _with_trunk(trunk: nn.Module, head: str = "") -> nn.Module:
    """Return timm's tower as open_clip builds it, around another trunk."""
    around: Any = TimmModel("test_vit", EMBED, image_size=SIDE, pool="token", proj="")
    around.trunk = trunk
    if head == "linear":
        around.head = nn.Sequential()
        around.head.add_module("drop", nn.Dropout(0.0))
        around.head.add_module("proj", nn.Linear(20, EMBED, bias=False))
    if head == "mlp":
        from timm.layers import Mlp

        around.head = nn.Sequential()
        around.head.add_module("mlp", Mlp(20, 2 * EMBED, EMBED, bias=(True, False)))
    return around  # type: ignore[no-any-return]
