"""A model in open_clip's own files, with what makes it the tuned classifier beside it."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from safe_ray.backbones.openclip import load_model
from safe_ray.errors import InputError
from safe_ray.methods.linear import HasLinear, Linear
from safe_ray.prediction.bundle_files import CLASSIFIER, CONFIG, MODEL, ORIGINAL, plain

if TYPE_CHECKING:
    from safe_ray.prediction.predictor import Predictor

TOWERS = ("visual", "visual.trunk")
"""The image tower, of open_clip's models, and timm's within it."""

_BLEND = {
    "features": (
        "        return self.alpha * self.tuned(maps) + (1 - self.alpha) * self.original(maps)",
        "    features = normalize(model.encode_image(images), dim=-1)",
    ),
    "logits": (
        "        tuned, original = (normalize(p(maps), dim=-1) for p in (self.tuned, "
        "self.original))\n"
        "        return self.alpha * tuned + (1 - self.alpha) * original",
        "    features = model.encode_image(images)",
    ),
}


def how_to_load(pooling: str, blended: str) -> Sequence[str]:
    """Return lines of Python that use the bundle with open_clip, in the bundle's folder.

    A pooling that is spread over the image tower cannot be had twice without the tower: there the
    lines run two towers, and dense maps are not rounded as the head was trained and judged with
    them.

    Args:
        pooling: the part of the model that is its pooling, such as `visual.attnpool`; one of
            `TOWERS` where it is spread over the image tower.
        blended: see `safe_ray.methods.linear`.
    """
    blend, features = _BLEND[blended]
    is_spread = pooling in TOWERS
    strict = ", strict=False" if is_spread else ""
    rounded = ("        maps = maps.half().float()  # as the head was trained and judged",)
    return (
        "import copy, json, open_clip, torch; from safetensors.torch import load_file",
        "from torch.nn.functional import normalize",
        f"bundle, classifier = json.load(open('bundle.json')), load_file('{CLASSIFIER}')",
        "model, _, preprocess = open_clip.create_model_and_transforms('local-dir:.')",
        "class Blend(torch.nn.Module):",
        "    def __init__(self, tuned, original, alpha):",
        "        super().__init__()",
        "        self.tuned, self.original, self.alpha = tuned, copy.deepcopy(tuned), alpha",
        f"        self.original.load_state_dict(original{strict})",
        "    def forward(self, maps):",
        *(() if is_spread else rounded),
        *blend.split("\n"),
        f"model.{pooling} = Blend(model.{pooling}, load_file('{ORIGINAL}'), bundle['alpha'])",
        "model.eval()",
        "# images: [N, 3, S, S], preprocess(image) of each PIL image, stacked",
        "with torch.inference_mode():",
        features,
        "    logits = bundle['logit_scale'] * features @ classifier['weights'].T "
        "+ classifier['bias']",
        "    probabilities = torch.softmax(logits / bundle['temperature'], -1)",
    )


def linear_of(predictor: Predictor) -> Linear:
    """Return the form in which these files can hold a method.

    Raises:
        InputError: it has none.
    """
    fitted = predictor.fitted
    found = fitted.linear(predictor.at) if isinstance(fitted, HasLinear) else None
    if found is None:
        title = predictor.card["method"].get("title") or predictor.card["method"]["module"]
        raise InputError(
            f"{title} is not a linear classifier on pooled features, which is what open_clip's "
            "files can hold: give --format torch or --format onnx."
        )
    return found


def write(folder: Path, predictor: Predictor) -> None:
    """Write open_clip's two files, the original pooling and the classifier.

    Args:
        folder: where they go.
        predictor: on a CPU.

    Raises:
        InputError: see `linear_of`; or the pooling is no module of its own in the model.
    """
    linear = linear_of(predictor)
    backbone = predictor.backbone
    model, config = load_model(backbone.spec)
    original = {name: _plain(tensor) for name, tensor in backbone.state.items()}
    _check_pooling(model, backbone.part, original, backbone.spec.model)
    tuned = original if linear.head is None else linear.head
    if not set(tuned) <= set(original):
        raise InputError(
            "The head tunes the queries of its pooling, for which open_clip's models have no "
            "parameter: give --format torch or --format onnx."
        )
    weights = {name: _plain(tensor) for name, tensor in model.state_dict().items()}
    for name, tensor in tuned.items():
        weights[backbone.prefix + name] = _plain(tensor)
    bias = linear.weights.new_zeros(len(linear.weights)) if linear.bias is None else linear.bias
    save_file(weights, folder / MODEL, {"format": "pt"})
    save_file(original, folder / ORIGINAL, {"format": "pt"})
    save_file({"weights": _plain(linear.weights), "bias": _plain(bias)}, folder / CLASSIFIER)
    described = {"model_cfg": config, "preprocess_cfg": plain(model.visual.preprocess_cfg)}
    (folder / CONFIG).write_text(json.dumps(described, indent=2) + "\n")


def reader(folder: Path) -> Callable[[Tensor], Tensor]:
    """Return what a bundle does that has been written whole: pixels to logits."""
    from safe_ray.prediction.bundles import load_bundle

    return load_bundle(folder).logits


def _check_pooling(model: Any, part: str, original: Mapping[str, Tensor], name: str) -> None:
    try:
        module = model.get_submodule(part)
    except AttributeError:
        module = None
    names = set() if module is None else set(dict(module.named_parameters()))
    spread = part in TOWERS and not getattr(module, "output_tokens", False)
    if not part or not set(original) <= names or (names != set(original) and not spread):
        raise InputError(
            f"The pooling of {name!r} is no module of its own, so that plain open_clip cannot have "
            "two of it: give --format torch or --format onnx."
        )


def _plain(tensor: Tensor) -> Tensor:
    """Return a copy that shares no memory, float32 where it is floating."""
    dtype = torch.float32 if tensor.is_floating_point() else tensor.dtype
    return tensor.detach().to("cpu", dtype, copy=True).contiguous()
