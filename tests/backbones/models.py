"""Small models for the tests: configurations, files, and weights that leave nothing idle."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import open_clip
import torch
from safetensors.torch import save_file
from torch import nn

from safe_ray.specs import BackboneSpec

SMALL_TEXT = {"context_length": 16, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1}
SMALL_VISION = {"image_size": 64, "layers": [1, 1, 1, 1], "width": 16}


def write_config(folder: Path, name: str, **changes: Any) -> Path:
    config = {"embed_dim": 24, "vision_cfg": SMALL_VISION, "text_cfg": SMALL_TEXT, **changes}
    file = folder / f"{name}.json"
    file.write_text(json.dumps(config))
    return file


def small_spec(
    folder: Path, pretrained: str | None = None, name: str = "safe-ray-test-small", **changes: Any
) -> BackboneSpec:
    file = write_config(folder, name, **changes)
    return BackboneSpec("small", name, pretrained, str(file))


def enliven(model: nn.Module, seed: int = 0) -> None:
    """Give normalisation layers random weights and statistics, biases random values.

    A fresh ModifiedResNet multiplies every residual branch with 0, and has no biases to get wrong.
    """
    generator = torch.Generator().manual_seed(seed)

    def draw(tensor: torch.Tensor, low: float, high: float) -> None:
        tensor.data.copy_(torch.rand(tensor.shape, generator=generator) * (high - low) + low)

    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            draw(module.weight, 0.4, 0.9)
            draw(module.bias, -0.2, 0.2)
            draw(module.running_mean, -0.2, 0.2)
            draw(module.running_var, 0.5, 1.5)
        elif isinstance(module, nn.Linear | nn.LayerNorm) and module.bias is not None:
            draw(module.bias, -0.2, 0.2)


def lively_model(spec: BackboneSpec, seed: int = 0) -> nn.Module:
    """Return open_clip's model of the spec's configuration, with random weights, in eval mode."""
    if spec.model_config:
        open_clip.add_model_config(spec.model_config)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = open_clip.create_model(spec.model)
    enliven(model, seed)
    return model.eval()


def save_model(model: nn.Module, file: Path, dtype: torch.dtype | None = None) -> Path:
    state = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    if dtype is not None:
        state = {
            name: tensor.to(dtype) if tensor.is_floating_point() else tensor
            for name, tensor in state.items()
        }
    save_file(state, file)
    return file
