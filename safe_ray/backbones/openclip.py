"""Any open_clip model whose pooling a family knows, cut into trunk, pooling and text tower."""

from __future__ import annotations

import contextlib
import hashlib
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import open_clip
import torch
from huggingface_hub import try_to_load_from_cache
from open_clip.constants import HF_SAFE_WEIGHTS_NAME, HF_WEIGHTS_NAME
from open_clip.factory import load_state_dict
from open_clip.model import _build_vision_tower
from torch import nn
from torch.nn import functional

from safe_ray.backbones.files import read_model_config
from safe_ray.data.prompts import check_templates, render_prompts
from safe_ray.data.views import Preprocessing
from safe_ray.errors import InputError, nearest
from safe_ray.files import digest_json, resolve_path
from safe_ray.poolings.base import Cut, Pooling, find_pooling
from safe_ray.specs import BackboneSpec

PARTS = ("trunk", "pooling", "text")
DIGEST_LENGTH = 16
PROMPTS_PER_BATCH = 256
NAMED_KEYS = 3


class AbsentPart(nn.Module):
    """Stands for a part that `load_backbone` was not asked for."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name

    def forward(self, *_: Any) -> torch.Tensor:
        """Say what is missing."""
        raise RuntimeError(f"load_backbone was not asked for the part {self.name!r}")


@dataclass(frozen=True)
class Backbone:
    """An open_clip model cut in three.

    Attributes:
        spec: what it was loaded from.
        digest: 16 hexadecimal digits over all weights and the model's configuration.
        trunk_digest: likewise over the trunk alone.
        trunk: images [N, 3, S, S] -> dense maps [N, L, C]; float32, frozen.
        pooling: the pooling as a function of tokens and a state.
        state: the original state, under open_clip's names, float32. Empty if it was not asked for.
        prefix: what precedes these names in the whole model's state dict.
        tokens: L, the tokens of a dense map.
        width: C, the channels of a token.
        embed_dim: D, the size of an embedding.
        logit_scale: what cosines are multiplied with (already exponentiated).
        preprocessing: how images are made into the trunk's input.
        text: the text tower, tokens [N, context] -> embeddings [N, D].
        context_length: the tokens that the text tower reads.
    """

    spec: BackboneSpec
    digest: str
    trunk_digest: str
    trunk: nn.Module
    pooling: Pooling
    state: dict[str, torch.Tensor]
    prefix: str
    tokens: int
    width: int
    embed_dim: int
    logit_scale: float
    preprocessing: Preprocessing
    text: nn.Module = field(repr=False)
    context_length: int

    @torch.no_grad()
    def pool(self, maps: torch.Tensor) -> torch.Tensor:
        """Pool dense maps with the original pooling: [N, L, C] -> [N, D] float32, not normalised.

        `pool(trunk(images))` is what open_clip's `encode_image` returns.
        """
        stacked = {name: tensor.unsqueeze(0) for name, tensor in self.state.items()}
        return self.pooling.pool(self.pooling.prepare(maps), stacked)[0]

    @torch.no_grad()
    def classifier(self, classes: Sequence[str], templates: Sequence[str]) -> torch.Tensor:
        """Embed the class names: each prompt normalised, averaged over the templates, normalised.

        Args:
            classes: names; underscores are read as spaces.
            templates: prompts with one `{}` each.

        Returns:
            float32 [classes, D] on the CPU.

        Raises:
            InputError: a template without exactly one `{}`, or two classes whose prompts are the
                same once they are cut to what the text tower reads.
        """
        templates = check_templates(templates, f"the classifier of {self.spec.name!r}")
        return self.classifier_of(render_prompts(classes, templates), classes)

    def classifier_of(
        self, prompts: Sequence[Sequence[str]], classes: Sequence[str], distinct: bool = True
    ) -> torch.Tensor:
        """Embed each class's prompts: each normalised, averaged over the class, normalised.

        Args:
            prompts: one or more a class; not all classes need as many.
            classes: their names, for errors.
            distinct: refuse two classes with the same prompts.

        Returns:
            float32 [classes, D] on the CPU.

        Raises:
            InputError: two classes whose prompts are the same once they are cut to what the text
                tower reads.
        """
        with _quiet():
            tokenizer = open_clip.get_tokenizer(self.spec.model)
        tokens = tokenizer(
            [prompt for row in prompts for prompt in row], context_length=self.context_length
        )
        counts = [len(row) for row in prompts]
        if distinct:
            self._check_distinct(tokens.split(counts), classes)
        device = next(iter(self.text.parameters()), torch.empty(0)).device
        embeddings = torch.cat(
            [
                functional.normalize(self.text(batch.to(device)).float(), dim=-1).cpu()
                for batch in tokens.split(PROMPTS_PER_BATCH)
            ]
        )
        mean = torch.stack([rows.mean(dim=0) for rows in embeddings.split(counts)])
        return functional.normalize(mean, dim=-1)

    def _check_distinct(self, tokens: Sequence[torch.Tensor], classes: Sequence[str]) -> None:
        first: dict[tuple[int, ...], str] = {}
        for name, rows in zip(classes, tokens, strict=True):
            other = first.setdefault(tuple(rows.flatten().tolist()), name)
            if other is not name:
                raise InputError(
                    f"The classes {other!r} and {name!r} have the same prompts in the "
                    f"{self.context_length} tokens that {self.spec.name!r} reads: make their names "
                    "differ earlier, or shorten the template."
                )


class TextTower(nn.Module):
    """The text tower: tokens [N, context] -> embeddings [N, D], not normalised."""

    def __init__(self, model: Any) -> None:
        """Take over `model`, whose image tower is thrown away."""
        super().__init__()
        self.model = model
        self.model.visual = nn.Identity()
        self.requires_grad_(False)
        self.eval()

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Return the embeddings of the tokens."""
        return self.model.encode_text(tokens)


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
        InputError: an unknown model or tag, a model that is not a ModifiedResNet, a missing or
            unreadable file, weights that do not fit the model or are not finite numbers, or
            weights that cannot be downloaded.
    """
    unknown = [part for part in parts if part not in PARTS]
    if unknown:
        raise ValueError(f"parts {unknown} are not among {PARTS}")
    if spec.model_config is not None:
        _register_config(spec, resolve_path(spec.model_config))
    config = _model_config(spec)
    _check_family(config, spec)
    tag, file = _weights(spec)
    quick_gelu = bool(config.get("quick_gelu", False)) or (
        tag is not None and bool(open_clip.get_pretrained_cfg(spec.model, tag).get("quick_gelu"))
    )
    config["quick_gelu"] = quick_gelu
    model = _create(spec, tag if file is None else str(file), quick_gelu)

    weights = _float_tensors(model, spec)
    cut, preprocessing = _cut(model.visual, spec)
    trunk_weights = {
        name: tensor
        for name, tensor in weights.items()
        if name.startswith("visual.") and not name.startswith(cut.prefix)
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
    if spec.model_config is not None:
        _register_config(spec, resolve_path(spec.model_config))
    _model_config(spec)
    tag, _ = _weights(spec)
    if tag is None:
        return True
    config = open_clip.get_pretrained_cfg(spec.model, tag)
    url, hub = str(config.get("url", "")), str(config.get("hf_hub", ""))
    if hub:
        names = (HF_SAFE_WEIGHTS_NAME, HF_WEIGHTS_NAME, hub.rpartition("/")[2])
        return any(
            isinstance(try_to_load_from_cache(hub.rpartition("/")[0], name), str)
            for name in filter(None, names)
        )
    return Path("~/.cache/clip", url.rpartition("/")[2]).expanduser().is_file()


def _register_config(spec: BackboneSpec, file: Path) -> None:
    read_model_config(spec, file)
    # Registered every time: of two files with one name, the latest registered counts.
    open_clip.add_model_config(file)


def _model_config(spec: BackboneSpec) -> dict[str, Any]:
    known = open_clip.list_models()
    if spec.model not in known:
        raise InputError(
            f"Backbone {spec.name!r} uses the model {spec.model!r}, which open_clip "
            f"{open_clip.__version__} does not have: correct backbone.model, or define it with "
            f"backbone.model_config=<file>.json.{nearest(spec.model, known)}"
        )
    return open_clip.get_model_config(spec.model)


def _family(visual: nn.Module, spec: BackboneSpec) -> type[Pooling]:
    """Return the family of a tower, with weights or without.

    Raises:
        InputError: no family knows it.
    """
    family = find_pooling(visual, spec.pooling)
    if family is None:
        resnets = [
            name
            for name in open_clip.list_models()
            if _is_modified_resnet(open_clip.get_model_config(name))
        ]
        raise InputError(
            f"Backbone {spec.name!r} uses the model {spec.model!r}, which is not a ModifiedResNet "
            f"and so has no attention pooling to tune: use one of {', '.join(resnets)}."
        )
    return family


def _check_family(config: Mapping[str, Any], spec: BackboneSpec) -> None:
    """Refuse a model that no family knows before its weights are downloaded or read."""
    try:
        with _quiet(), torch.device("meta"):
            tower = _build_vision_tower(config["embed_dim"], dict(config["vision_cfg"]), False)
    # A configuration that cannot be built is explained when the whole model is.
    except Exception:
        return
    _family(tower, spec)


def _cut(visual: Any, spec: BackboneSpec) -> tuple[Cut, Preprocessing]:
    """Cut the image tower by its family, and say how images are made into its input."""
    preprocessing = Preprocessing.from_open_clip(visual.preprocess_cfg)
    family = _family(visual, spec)
    try:
        return family.cut(visual, preprocessing.size), preprocessing
    except ValueError as error:
        raise InputError(
            f"The model {spec.model!r} of backbone {spec.name!r} cannot be cut: {error}."
        ) from error


def _is_modified_resnet(config: Mapping[str, Any]) -> bool:
    vision = config["vision_cfg"]
    return (
        isinstance(vision, Mapping)
        and isinstance(vision.get("layers"), list)
        and not vision.get("timm_model_name")
    )


def _weights(spec: BackboneSpec) -> tuple[str | None, Path | None]:
    """Return the tag or the file that `spec.pretrained` names, or neither."""
    if spec.pretrained is None:
        return None, None
    if open_clip.is_pretrained_cfg(spec.model, spec.pretrained):
        return spec.pretrained, None
    file = resolve_path(spec.pretrained)
    if file.is_file():
        return None, file
    tags = open_clip.list_pretrained_tags_by_model(spec.model)
    tagged = f"its tags are {', '.join(map(repr, tags))}" if tags else "it has no tags"
    what = "weights file" if "/" in spec.pretrained or file.suffix else "tag or weights file"
    raise InputError(
        f"Backbone {spec.name!r} has no {what} {spec.pretrained!r} for the model {spec.model!r} "
        f"({tagged}): correct backbone.pretrained.{nearest(spec.pretrained, tags)}"
    )


def _create(spec: BackboneSpec, pretrained: str | None, quick_gelu: bool) -> Any:
    with _quiet(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(spec.seed)
        try:
            return open_clip.create_model(spec.model, pretrained, force_quick_gelu=quick_gelu)
        # Configurations and files can be wrong in any way; each is explained below.
        except Exception as error:
            raise InputError(_why_not(spec, pretrained, error)) from error


def _why_not(spec: BackboneSpec, pretrained: str | None, error: Exception) -> str:
    """Return the sentence on why open_clip did not create the model."""
    try:
        model = open_clip.create_model(spec.model)
    except Exception as config_error:
        return (
            f"open_clip cannot build the model {spec.model!r} ({_first_line(config_error)}): "
            f"correct {spec.model_config or 'backbone.model'}."
        )
    if pretrained is None or not Path(pretrained).is_file():
        return (
            f"The weights {pretrained!r} of the model {spec.model!r} cannot be had "
            f"({_first_line(error)}): connect this machine, or name a local safetensors file with "
            "backbone.pretrained=<file>."
        )
    try:
        found = {name: tuple(tensor.shape) for name, tensor in load_state_dict(pretrained).items()}
    except Exception as file_error:
        # torch would tell a person to switch off the check that makes loading safe.
        torchs = isinstance(file_error, UnpicklingError)
        reason = "it does not hold tensors alone" if torchs else _first_line(file_error)
        return (
            f"The weights file {pretrained} of backbone {spec.name!r} cannot be read "
            f"({reason}): give safetensors, or a PyTorch state dict."
        )
    wanted = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    differences = [
        f"{name} is {list(found[name])} instead of {list(wanted[name])}"
        for name in wanted
        if name in found and found[name] != wanted[name]
    ]
    differences += [f"{name} is missing" for name in wanted if name not in found]
    differences += [f"{name} is unknown" for name in found if name not in wanted]
    more = len(differences) - NAMED_KEYS
    return (
        f"The weights file {pretrained} does not fit the model {spec.model!r}: "
        f"{', '.join(differences[:NAMED_KEYS]) or _first_line(error)}"
        f"{f' and {more} more differences' if more > 0 else ''}; choose the model that the "
        "weights were trained as."
    )


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


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(".:") if lines else type(error).__name__


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep open_clip from writing to the root logger, which it would even configure."""
    root = logging.getLogger()
    silent = logging.NullHandler()
    disabled = root.manager.disable
    root.addHandler(silent)
    logging.disable(max(disabled, logging.ERROR))
    try:
        yield
    finally:
        logging.disable(disabled)
        root.removeHandler(silent)
