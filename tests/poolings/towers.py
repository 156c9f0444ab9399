"""Small towers of open_clip's with random weights, and what its model says of their images."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import open_clip
import timm
import torch
from timm.models import register_model
from torch import Tensor, nn

from safe_ray.poolings.base import Cut, Pooling
from tests.backbones.models import SMALL_TEXT

SIZE, DIM = 64, 24


@register_model
def safe_ray_small_vit(pretrained: bool = False, **changes: Any) -> nn.Module:
    """A ViT as SigLIP's."""
    size = {"img_size": SIZE, "depth": 2, "embed_dim": 32, "num_heads": 4}
    return timm.create_model("vit_base_patch16_siglip_224", **{**size, **changes})


@register_model
def safe_ray_small_registers(pretrained: bool = False, **changes: Any) -> nn.Module:
    """A ViT with a class token and registers that its pooling is not shown."""
    size = {"img_size": SIZE, "depth": 2, "embed_dim": 32, "num_heads": 4, "class_token": True}
    shown = {"reg_tokens": 2, "act_layer": "gelu_tanh"}
    return timm.create_model("vit_base_patch16_siglip_224", **{**size, **shown, **changes})


@register_model
def safe_ray_small_shown(pretrained: bool = False, **changes: Any) -> nn.Module:
    """The same, but they are shown."""
    return safe_ray_small_registers(pool_include_prefix=True, **changes)


@register_model
def safe_ray_small_register(pretrained: bool = False, **changes: Any) -> nn.Module:
    """timm's test_vit3: a register without a class token, which its pooling is shown."""
    return timm.create_model("test_vit3", **{"img_size": SIZE, **changes})


@register_model
def safe_ray_small_pe(pretrained: bool = False, **changes: Any) -> nn.Module:
    """A tower as PE-Core's: rotary positions, a class token, and a head."""
    size = {"img_size": SIZE, "depth": 2, "embed_dim": 32, "num_heads": 2}
    heads = {"attn_pool_num_heads": 4, "ref_feat_shape": (4, 4)}
    return timm.create_model("vit_pe_core_tiny_patch16_384", **{**size, **heads, **changes})


@register_model
def safe_ray_small_resnet(pretrained: bool = False, **changes: Any) -> nn.Module:
    """A ResNet as timm's resnet50_clip, of an eighth of its width: 256 channels."""
    blocks = timm.models.byobnet.model_cfgs["resnet50_clip"].blocks
    shallow = tuple(type(block)(**{**vars(block), "d": 1}) for block in blocks)
    size = {"img_size": SIZE, "width_factor": 0.125, "blocks": shallow}
    return timm.create_model("resnet50_clip", **{**size, **changes})


VISIONS: dict[str, dict[str, Any]] = {
    "siglip": {
        "timm_model_name": "safe_ray_small_vit",
        "timm_pool": "map",
        "timm_proj": "none",
    },
    "registers": {
        "timm_model_name": "safe_ray_small_registers",
        "timm_pool": "map",
        "timm_proj": None,
    },
    "shown": {
        "timm_model_name": "safe_ray_small_shown",
        "timm_pool": "map",
        "timm_proj": None,
    },
    "register": {
        "timm_model_name": "safe_ray_small_register",
        "timm_pool": "map",
        "timm_proj": "none",
    },
    "pe": {"timm_model_name": "safe_ray_small_pe", "timm_pool": "map", "timm_proj": None},
    "resnet": {"timm_model_name": "safe_ray_small_resnet", "timm_pool": "token", "timm_proj": None},
    "coca": {
        "layers": 2,
        "width": 64,
        "head_width": 16,
        "patch_size": 16,
        "attentional_pool": True,
        "attn_pooler_queries": 5,
        "attn_pooler_heads": 4,
        "output_tokens": True,
    },
    "square coca": {
        "layers": 1,
        "width": DIM,
        "head_width": 12,
        "patch_size": 16,
        "attentional_pool": True,
        "attn_pooler_heads": 2,
        "output_tokens": True,
    },
}


def config_of(kind: str) -> dict[str, Any]:
    """Return open_clip's configuration of a small model."""
    dim = {"siglip": 32, "register": 96}.get(kind, DIM)
    text = {**SMALL_TEXT, "vocab_size": 100}
    config = {
        "embed_dim": dim,
        "vision_cfg": {"image_size": SIZE, **VISIONS[kind]},
        "text_cfg": text,
    }
    if "coca" in kind:
        config["text_cfg"] = {**text, "embed_cls": True, "output_tokens": True}
        config["multimodal_cfg"] = {**text, "attn_pooler_heads": 2}
        config["custom_text"] = True
    return config


def small_model(folder: Path, kind: str, seed: int = 0, **vision: Any) -> Any:
    """Return open_clip's model of one of `VISIONS`, in eval mode, float64, nothing of it idle.

    Args:
        folder: where its configuration is written.
        kind: which.
        seed: of its weights.
        vision: what its tower has otherwise.
    """
    config = config_of(kind)
    config["vision_cfg"].update(vision)
    name = f"safe-ray-small-{kind.replace(' ', '-')}"
    file = folder / f"{name}.json"
    file.write_text(json.dumps(config))
    open_clip.add_model_config(file)
    model = open_clip.create_model(name)
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.visual.parameters():
        bound = 0.3 if parameter.dim() < 2 else 1.5 * parameter[0].numel() ** -0.5
        noise = (2 * torch.rand(parameter.shape, generator=generator) - 1) * bound
        # What multiplies a norm is around one.
        around = 1.0 if parameter.dim() == 1 and bool((parameter == 1).all()) else 0.0
        parameter.data.copy_(around + noise)
    return model.double().eval()


def images(count: int = 3) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(count, 3, SIZE, SIZE, generator=generator, dtype=torch.float64)


@torch.no_grad()
def encode(model: Any, pixels: Tensor) -> Tensor:
    """Return open_clip's embeddings, not normalised."""
    embedding: Tensor = model.encode_image(pixels, normalize=False)
    return embedding


def cut_copy(family: type[Pooling], model: Any) -> Cut:
    """Cut a copy of the model's image tower."""
    visual = copy.deepcopy(model.visual)
    assert family.matches(visual)
    return family.cut(visual, SIZE)


def stacked(states: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Stack the states of the heads of a bank."""
    return {name: torch.stack([state[name] for state in states]) for name in states[0]}


def assert_pools_as_open_clip(cut: Cut, model: Any, pixels: Tensor, maps: Tensor) -> None:
    """The original head of a cut tower makes of its maps what the whole tower encodes."""
    expected = encode(model, pixels)
    found = cut.pooling.pool(cut.pooling.prepare(maps), stacked([cut.state]))[0]
    assert found.shape == (len(pixels), cut.embed_dim)
    assert torch.allclose(found, expected, rtol=1e-12, atol=1e-12 * float(expected.abs().max()))


def several(state: dict[str, Tensor], count: int) -> dict[str, Tensor]:
    """Return stacked states that are all different."""
    generator = torch.Generator().manual_seed(7)

    def changed(tensor: Tensor) -> Tensor:
        noise = torch.randn(tensor.shape, generator=generator, dtype=tensor.dtype)
        return tensor + 0.2 * tensor.std() * noise

    return stacked([{n: changed(t) for n, t in state.items()} for _ in range(count)])
