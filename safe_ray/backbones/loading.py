"""`safe_ray.load_backbone`: any open_clip model by its name, in a notebook or a script."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from safe_ray.specs import BackboneSpec

if TYPE_CHECKING:
    import torch

    from safe_ray.backbones.backbone import Backbone


def load_backbone(
    model: str | BackboneSpec,
    pretrained: str | Path | None = None,
    *,
    device: str | torch.device = "cpu",
    parts: Sequence[str] = ("trunk", "pooling", "text"),
    model_config: str | Path | None = None,
    seed: int = 0,
    pooling: str | None = None,
) -> Backbone:
    """Return an open_clip model cut in trunk, pooling and text tower.

    `backbone.trunk(images)` gives the dense maps, `backbone.pool(maps)` the embeddings, which are
    what open_clip's `encode_image` returns, and `backbone.classifier(classes, templates)` the text
    embeddings of classes.

    Args:
        model: open_clip's name of it (`python -m safe_ray.backbones` lists them), or a spec, which
            says all of what follows but the device and the parts.
        pretrained: a tag of open_clip's such as `openai`, a weights file, or None for random
            weights.
        device: for the parts.
        parts: which of trunk, pooling and text to keep.
        model_config: a JSON file that defines the model, if open_clip does not ship it.
        seed: of random weights.
        pooling: a module that defines the pooling's family; None finds it.

    Raises:
        InputError: there is no such model, tag or file, no family of poolings knows the model, the
            weights do not fit it or cannot be had, or a package is missing.
    """
    from safe_ray.backbones import openclip

    if isinstance(model, BackboneSpec):
        return openclip.load_backbone(model, device, parts)
    spec = BackboneSpec(
        name=model,
        model=model,
        pretrained=None if pretrained is None else str(pretrained),
        model_config=None if model_config is None else str(model_config),
        seed=seed,
        pooling=pooling,
    )
    return openclip.load_backbone(spec, device, parts)
