"""Small heads on disk, made without a sweep."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from safe_ray.backbones.openclip import Backbone, load_backbone
from safe_ray.data.prompts import render_prompts
from safe_ray.files import digest_json
from safe_ray.heads.artifact import save_head
from safe_ray.specs import BackboneSpec
from tests.heads.test_artifact import card

CLASSES = ("red circle", "green square", "blue triangle")
TEMPLATES = ("a drawing of a {}.",)


def moved(state: Mapping[str, Tensor], by: float = 0.05, seed: int = 3) -> dict[str, Tensor]:
    """A pooling that has been tuned, as far as anybody can tell."""
    generator = torch.Generator().manual_seed(seed)
    return {n: t + by * torch.randn(t.shape, generator=generator) for n, t in state.items()}


def write_head(
    folder: Path,
    spec: BackboneSpec,
    state: Mapping[str, Tensor] | None = None,
    **changes: Any,
) -> Backbone:
    """Write a head, of SAFE if nothing else is said, and return its backbone."""
    backbone = load_backbone(spec)
    named = {
        "name": spec.name,
        "model": spec.model,
        "pretrained": spec.pretrained,
        "model_config": spec.model_config,
        "digest": backbone.digest,
    }
    values = {
        "backbone": named,
        "class_names": list(CLASSES),
        "templates": list(TEMPLATES),
        "prompts_digest": digest_json(render_prompts(CLASSES, TEMPLATES)),
        "preprocessing": json.loads(json.dumps(backbone.preprocessing.to_json())),
        **changes,
    }
    kept = moved(backbone.state) if state is None else state
    save_head(folder, kept, card(**values))
    return backbone
