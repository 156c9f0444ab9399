"""Any open_clip model whose pooling a family knows, cut into trunk, pooling and text tower."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import open_clip
import torch
from huggingface_hub import try_to_load_from_cache
from open_clip.constants import HF_SAFE_WEIGHTS_NAME, HF_WEIGHTS_NAME
from open_clip.model import _build_vision_tower
from torch import nn

from safe_ray.backbones.backbone import AbsentPart, Backbone, TextTower
from safe_ray.backbones.creation import config_of, create, quiet, register_config, tag_or_file
from safe_ray.backbones.tokenizing import check_text_tower, check_tokenizer
from safe_ray.data.views import Preprocessing
from safe_ray.errors import InputError
from safe_ray.files import digest_json, resolve_path
from safe_ray.poolings.base import Cut, Pooling, find_pooling
from safe_ray.specs import BackboneSpec

PARTS = ("trunk", "pooling", "text")
DIGEST_LENGTH = 16


def load_backbone(
    spec: BackboneSpec, device: str | torch.device = "cpu", parts: Sequence[str] = PARTS
) -> Backbone:
    """Load an open_clip model and cut it in three.

    Weights of a tag that were trained with quick-GELU get it, whether or not the name of the model
    says so. Random weights (`spec.pretrained` is None) are those of `spec.seed`; the caller's
    random state is left as it was.

    Args:
        spec: the architecture and its weights.
        device: for the parts.
        parts: which of `PARTS` to keep; the others' memory is freed. The digests do not depend
            on it.

    Raises:
        InputError: an unknown model or tag, a model that no family of poolings knows, a missing or
            unreadable file, weights that do not fit the model or are not finite numbers, weights
            that cannot be downloaded, or a text tower that needs a package which is not there.
    """
    _check_parts(parts)
    if "text" in parts:
        check_tokenizer(spec, config_of(_registered(spec)))
    model, config = load_model(spec)
    return cut_model(spec, model, config, device, parts)


def load_model(spec: BackboneSpec) -> tuple[Any, dict[str, Any]]:
    """Return open_clip's model in one piece, float32 on the CPU, and its configuration.

    The configuration has a `quick_gelu` that is right for the weights.

    Raises:
        InputError: see `load_backbone`.
    """
    config = config_of(_registered(spec))
    check_text_tower(spec, config)
    _check_family(config, spec)
    tag, file = tag_or_file(spec)
    quick_gelu = bool(config.get("quick_gelu", False)) or (
        tag is not None and bool(open_clip.get_pretrained_cfg(spec.model, tag).get("quick_gelu"))
    )
    config["quick_gelu"] = quick_gelu
    return create(spec, tag if file is None else str(file), quick_gelu), config


def cut_model(
    spec: BackboneSpec,
    model: Any,
    config: Mapping[str, Any],
    device: str | torch.device = "cpu",
    parts: Sequence[str] = PARTS,
) -> Backbone:
    """Cut a model of open_clip's, which is used up, in three.

    Args:
        spec: what it was loaded from.
        model: on the CPU.
        config: its configuration.
        device: see `load_backbone`.
        parts: see `load_backbone`.

    Raises:
        InputError: no family knows its image tower, or its weights are not finite numbers.
    """
    _check_parts(parts)
    weights = _float_tensors(model, spec)
    cut, preprocessing = _cut(model.visual, spec)
    tuned = {cut.prefix + name for name in cut.state}
    trunk_weights = {
        name: tensor
        for name, tensor in weights.items()
        if name.startswith("visual.") and name not in tuned
    }
    return Backbone(
        spec=spec,
        digest=_digest(weights, config),
        trunk_digest=_digest(trunk_weights, cut.identity),
        trunk=cut.trunk.to(device) if "trunk" in parts else AbsentPart("trunk"),
        pooling=cut.pooling,
        state={
            name: tensor.to(device, torch.float32, copy=True).contiguous()
            for name, tensor in cut.state.items()
        }
        if "pooling" in parts
        else {},
        prefix=cut.prefix,
        tokens=cut.tokens,
        width=cut.width,
        embed_dim=cut.embed_dim,
        logit_scale=float(model.logit_scale.detach().double().exp()),
        preprocessing=preprocessing,
        text=TextTower(model).to(device) if "text" in parts else AbsentPart("text"),
        context_length=int(model.context_length),
    )


def weights_at_hand(spec: BackboneSpec) -> bool:
    """Return whether the weights can be loaded without a download.

    Raises:
        InputError: see `load_backbone`.
    """
    config_of(_registered(spec))
    tag, _ = tag_or_file(spec)
    return tag is None or is_downloaded(spec.model, tag)


def is_downloaded(model: str, tag: str) -> bool:
    """Return whether the weights of a tag of open_clip's are on this machine."""
    config = open_clip.get_pretrained_cfg(model, tag)
    url, hub = str(config.get("url", "")), str(config.get("hf_hub", ""))
    if hub:
        names = (HF_SAFE_WEIGHTS_NAME, HF_WEIGHTS_NAME, hub.rpartition("/")[2])
        return any(
            isinstance(try_to_load_from_cache(hub.rpartition("/")[0], name), str)
            for name in filter(None, names)
        )
    return Path("~/.cache/clip", url.rpartition("/")[2]).expanduser().is_file()


def _check_parts(parts: Sequence[str]) -> None:
    unknown = [part for part in parts if part not in PARTS]
    if unknown:
        raise ValueError(f"parts {unknown} are not among {PARTS}")


def _registered(spec: BackboneSpec) -> BackboneSpec:
    """Make an architecture of a file known to open_clip; return the spec."""
    if spec.model_config is not None:
        register_config(spec, resolve_path(spec.model_config))
    return spec


def _family(visual: nn.Module, spec: BackboneSpec) -> type[Pooling]:
    """Return the family of a tower, with weights or without.

    Raises:
        InputError: no family knows it.
    """
    family = find_pooling(visual, spec.pooling)
    if family is None:
        raise InputError(
            f"Backbone {spec.name!r} uses the model {spec.model!r}, whose image tower ends neither "
            "in an attention pooling that can be tuned nor in a linear projection: choose one that "
            "python -m safe_ray.backbones lists, such as ViT-B-32 or RN50."
        )
    return family


def _check_family(config: Mapping[str, Any], spec: BackboneSpec) -> None:
    """Refuse a model that cannot be cut before its weights are downloaded or read."""
    try:
        tower = empty_tower(config)
    # A configuration that cannot be built is explained when the whole model is.
    except Exception:
        return
    cut_tower(tower, side_of(tower), spec)


def side_of(tower: Any) -> int:
    """Return the side of a tower's images, in pixels."""
    size = tower.image_size
    return int(size[0] if isinstance(size, Sequence) else size)


def empty_tower(config: Mapping[str, Any]) -> Any:
    """Return the image tower of a configuration, without memory for its weights."""
    with quiet(), torch.device("meta"):
        return vision_tower(config)


def vision_tower(config: Mapping[str, Any]) -> Any:
    """Return the image tower of a configuration, with random weights; nothing is downloaded."""
    vision = {**config["vision_cfg"], "timm_model_pretrained": False}
    if not vision.get("timm_model_name"):
        vision.pop("timm_model_pretrained")
    return _build_vision_tower(config["embed_dim"], vision, bool(config.get("quick_gelu", False)))


def cut_tower(visual: Any, image_size: int, spec: BackboneSpec) -> Cut:
    """Cut an image tower, which is used up, by its family.

    Raises:
        InputError: no family knows it, or its parts do not fit each other.
    """
    family = _family(visual, spec)
    try:
        return family.cut(visual, image_size)
    except ValueError as error:
        raise InputError(
            f"The model {spec.model!r} of backbone {spec.name!r} cannot be cut: {error}."
        ) from error


def _cut(visual: Any, spec: BackboneSpec) -> tuple[Cut, Preprocessing]:
    """Cut the image tower by its family, and say how images are made into its input."""
    try:
        preprocessing = Preprocessing.from_open_clip(visual.preprocess_cfg)
    except ValueError as error:
        raise InputError(
            f"The model {spec.model!r} of backbone {spec.name!r} cannot be used: {error}."
        ) from error
    return cut_tower(visual, preprocessing.size, spec), preprocessing


def _float_tensors(model: nn.Module, spec: BackboneSpec) -> dict[str, torch.Tensor]:
    """Return the weights and statistics by name; counters of batches do not affect the model."""
    tensors = {
        name: tensor.detach()
        for name, tensor in model.state_dict().items()
        if tensor.is_floating_point()
    }
    for name, tensor in tensors.items():
        if not torch.isfinite(tensor).all():
            raise InputError(
                f"The weights {spec.pretrained!r} of backbone {spec.name!r} have NaN or infinity "
                f"in {name}: use other weights."
            )
    return tensors


def _digest(tensors: Mapping[str, torch.Tensor], config: Mapping[str, Any]) -> str:
    digest = hashlib.sha256(digest_json(config, length=64).encode())
    for name in sorted(tensors):
        tensor = tensors[name].contiguous()
        digest.update(f"\n{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()[:DIGEST_LENGTH]
