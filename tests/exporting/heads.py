"""Heads of every method on a small model, fitted to random maps: no sweep, no Ray."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from safe_ray.backbones.openclip import load_backbone
from safe_ray.data.prompts import render_prompts
from safe_ray.files import digest_json
from safe_ray.heads.artifact import save_head
from safe_ray.methods.base import TaskData, make_method
from safe_ray.methods.features import MappedFeatures
from safe_ray.poolings.low_rank import beginning, weights_of, with_factors
from tests.backbones.models import lively_model, save_model, small_spec
from tests.heads.test_artifact import card

CLASSES = ("red circle", "blue square", "green star")
TEMPLATES = ("a drawing of a {}.",)
TEMPERATURE = 1.5
DEVICE = torch.device("cpu")

# Module, options, what is searched, knobs.
METHODS: Mapping[str, tuple[str, dict[str, Any], dict[str, float], dict[str, float]]] = {
    "safe": ("tuned", {}, {}, {"alpha": 0.4}),
    "logit_blend": ("tuned", {"blend": "logits"}, {}, {"alpha": 0.3}),
    "weight_blend": ("tuned", {"blend": "weights"}, {}, {"alpha": 0.6}),
    "safe_lowrank": ("low_rank", {}, {"rank": 2}, {"alpha": 0.7}),
    "safe_a": ("adapted", {"features": "safe"}, {}, {"alpha": 0.4, "beta": 3.0, "gamma": 2.0}),
    "safe_gda": (
        "adapted",
        {"features": "safe", "adapter": "gda"},
        {},
        {"alpha": 0.5, "gamma": 0.5},
    ),
    "tip_adapter_f": (
        "adapted",
        {"train": True},
        {"lr": 1e-3, "epochs": 2},
        {"beta": 3.0, "gamma": 1.0},
    ),
    "proker": ("adapted", {"adapter": "kernel"}, {}, {"beta": 2.0, "lambda": 0.1}),
    "ss_text": ("adapted", {"adapter": "ss_text"}, {}, {}),
    "linear_probe": ("probe", {}, {"lr": 1e-2, "epochs": 2}, {"blend": 0.7}),
    "safe_linear": (
        "probe",
        {"features": "safe"},
        {"probe_lr": 1e-2, "probe_epochs": 2},
        {"alpha": 0.4, "blend": 0.7},
    ),
    "clip_adapter": ("clip_adapter", {}, {"lr": 1e-2, "epochs": 2}, {"ratio": 0.5}),
    "task_residual": ("task_residual", {}, {"lr": 1e-2, "epochs": 2}, {"ratio": 0.5}),
}
LINEAR = tuple(
    name for name in METHODS if name not in ("safe_a", "tip_adapter_f", "proker", "clip_adapter")
)


def write_head(
    folder: Path, method: str = "safe", name: str = "safe-ray-test-export", **changes: Any
) -> Path:
    """Write a head of a method, with the small model's weights beside it.

    The model is another one by `name` and `changes` (see `small_spec`).
    """
    spec = small_spec(folder, name=name, **changes)
    file = save_model(lively_model(spec), folder / "weights.safetensors")
    named = {
        "name": "small",
        "model": spec.model,
        "pretrained": str(file),
        "model_config": spec.model_config,
    }
    spec = type(spec)(**named)
    backbone = load_backbone(spec)
    module, options, values, knobs = METHODS[method]
    generator = torch.Generator().manual_seed(3)
    maps = torch.randn(6, 2, backbone.tokens, backbone.width, generator=generator).half()
    if method == "safe_lowrank":
        names = weights_of(list(backbone.state), backbone.state)
        [factors] = beginning(backbone.state, names, [2], 0)
        moved = {
            name: 0.05 * torch.randn(tensor.shape, generator=generator)
            for name, tensor in factors.items()
        }
        head = with_factors(backbone.state, moved)
    else:
        head = {
            name: tensor + 0.05 * torch.randn(tensor.shape, generator=generator)
            for name, tensor in backbone.state.items()
        }
    made = make_method(f"safe_ray.methods.{module}", options)
    task = TaskData(
        MappedFeatures(maps, backbone.pooling, backbone.state, DEVICE),
        torch.tensor([0, 0, 1, 1, 2, 2]),
        backbone.classifier(CLASSES, TEMPLATES),
        backbone.logit_scale,
        backbone.state,
        [head] if made.recipe else [],
    )
    [fitted] = made.fit(task, [values])
    save_head(
        folder / "head",
        dict(fitted.state()),
        card(
            backbone={**named, "digest": backbone.digest, "part": backbone.part},
            method={
                "name": method,
                "title": method,
                "module": f"safe_ray.methods.{module}",
                "options": options,
            },
            class_names=list(CLASSES),
            templates=list(TEMPLATES),
            prompts_digest=digest_json(render_prompts(CLASSES, TEMPLATES)),
            knobs=knobs,
            logit_scale=backbone.logit_scale,
            calibration={"temperature": TEMPERATURE},
        ),
    )
    return folder / "head"
