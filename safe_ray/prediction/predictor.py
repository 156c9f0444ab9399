"""A head, with all that it needs to classify pixels; plain PyTorch, no cluster and no store."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from safe_ray.backbones.backbone import AbsentPart
from safe_ray.backbones.openclip import load_backbone
from safe_ray.data.locations import first_line
from safe_ray.data.prompts import render_names
from safe_ray.data.views import Preprocessing
from safe_ray.errors import InputError
from safe_ray.features.trunk import run_trunk
from safe_ray.files import digest_json
from safe_ray.heads.artifact import load_head
from safe_ray.methods.base import Fitted, TaskData, check_module, make_method
from safe_ray.methods.features import MappedFeatures
from safe_ray.specs import BackboneSpec, Task, shots_of
from safe_ray.training.facts import CLASSIFIER, TaskFacts, load_classifier

if TYPE_CHECKING:
    from safe_ray.backbones.openclip import Backbone

SINGLE, ENSEMBLE = "single", "ensemble"
BACKBONE = "backbone"
"""The folder beside a packed head with those files of its backbone that nobody else has."""
_TASKS = "tasks"


@dataclass(frozen=True)
class Predictor:
    """A tuned model for one task.

    Attributes:
        card: of the head.
        backbone: trunk and original pooling, on `device`.
        task: classifier and logit scale; it has no support samples.
        fitted: the method as it was fitted.
        at: a value for each of its knobs.
        device: where everything is.
    """

    card: Mapping[str, Any]
    backbone: Backbone
    task: TaskData
    fitted: Fitted
    at: Mapping[str, float]
    device: torch.device

    @classmethod
    def load(
        cls,
        folder: Path,
        device: torch.device | None = None,
        alpha: float | None = None,
        trusted: Sequence[str] = (),
        backbone: Backbone | None = None,
    ) -> Predictor:
        """Read a head's folder, and the backbone that its card names.

        Args:
            folder: with `head.json` and `head.safetensors`.
            device: where to compute; a CPU by default.
            alpha: instead of the one that the validation samples chose, 0 to 1.
            trusted: modules that the head may name beside this package's own and those that are
                imported already.
            backbone: trunk and pooling of another head, on `device`, to be shared with it.

        Raises:
            InputError: no head, a damaged one, one for other weights than the card names or than
                those of `backbone`, class names that do not give its prompts, an alpha for a method
                that has none, or a module that nobody trusts.
        """
        device = device or torch.device("cpu")
        state, card = load_head(folder)
        at = _knobs(card, alpha, folder)
        named = card["backbone"]
        for module in (card["method"].get("module"), named.get("pooling")):
            if module is not None:
                check_module(module, trusted)
        if named.get("model") is None or "module" not in card["method"]:
            raise InputError(
                f"The card of {folder} names no model, or no module of its method: fetch the head "
                "again."
            )
        spec = BackboneSpec(
            named.get("name", named["model"]),
            named["model"],
            _beside(folder, named.get("pretrained")),
            _beside(folder, named.get("model_config")),
            seed=named.get("seed", 0),
            pooling=named.get("pooling"),
        )
        classifier = _kept_classifier(folder, card)
        if backbone is None:
            parts = ("trunk", "pooling") if classifier is not None else ("trunk", "pooling", "text")
            backbone = load_backbone(spec, device, parts)
        if backbone.digest != named.get("digest"):
            raise InputError(
                f"The head in {folder} was trained on weights of {spec.name!r} with the digest "
                f"{named.get('digest')}, and those that are found here have {backbone.digest}: "
                "give it the weights of its training."
            )
        if classifier is None:
            absent = isinstance(backbone.text, AbsentPart)
            reader = load_backbone(spec, device, ("text",)) if absent else backbone
            classifier = _classifier(reader, card, folder)
        try:
            return cls.of(card, state, backbone, classifier, at, device)
        except InputError:
            raise
        # Tensors of other names and shapes fail in a different way in each method.
        except Exception as error:
            raise InputError(
                f"The head in {folder} does not fit its card ({first_line(error)}): fetch it again."
            ) from error

    @classmethod
    def of(
        cls,
        card: Mapping[str, Any],
        state: Mapping[str, Tensor],
        backbone: Backbone,
        classifier: Tensor,
        at: Mapping[str, float],
        device: torch.device,
    ) -> Predictor:
        """Put together what is in memory, and try it on a blank map.

        Args:
            card: of the head.
            state: the head's tensors.
            backbone: trunk and pooling, on `device`.
            classifier: `[classes, D]`, the text embeddings of the classes.
            at: a value for each of the method's knobs.
            device: where to compute.

        Raises:
            Exception: the tensors are not those of the card's method, pooling and classes; of which
                type depends on the method.
        """
        backbone.trunk.to(memory_format=torch.channels_last)
        task = TaskData(
            MappedFeatures(torch.empty(0), backbone.pooling, backbone.state, device),
            torch.empty(0, dtype=torch.int64),
            classifier.to(device),
            float(card["logit_scale"]),
            backbone.state,
        )
        method = make_method(card["method"]["module"], card["method"].get("options", {}))
        fitted = method.load(state, task)
        _try_out(fitted, backbone, at, len(card["class_names"]), device)
        return cls(card, backbone, task, fitted, at, device)

    def with_alpha(self, alpha: float) -> Predictor:
        """Return the same head with another blend; the two share all their weights.

        Args:
            alpha: 0 to 1.

        Raises:
            InputError: an alpha that does not lie there, or a method that has none.
        """
        at = _knobs(self.card, alpha, None)
        method = make_method(self.card["method"]["module"], self.card["method"].get("options", {}))
        # Made anew, since what a method derives of an alpha is kept with it and goes with it.
        return replace(self, fitted=method.load(self.fitted.state(), self.task), at=at)

    @property
    def class_names(self) -> tuple[str, ...]:
        """The classes, in the order of the logits."""
        return tuple(self.card["class_names"])

    @property
    def preprocessing(self) -> Preprocessing:
        """How an image is made into pixels."""
        return self.backbone.preprocessing

    @property
    def temperature(self) -> float:
        """What calibrates logits; see `safe_ray.heads.calibration.fit_temperature`."""
        return float(self.card.get("calibration", {}).get("temperature", 1.0))

    @torch.no_grad()
    def logits(self, pixels: Tensor) -> Tensor:
        """Return logits `[N, classes]`, float32 on the CPU.

        They are those of the sweep's test report: maps go through float16, as a store keeps them.

        Args:
            pixels: uint8 `[N, 3, S, S]`, as `safe_ray.data.views.evaluation_view` makes them.
        """
        maps = run_trunk(self.backbone, pixels, "fp32", self.device).unsqueeze(1)
        features = MappedFeatures(maps, self.backbone.pooling, self.backbone.state, self.device)
        return self.fitted.logits(features, self.at).float().cpu()

    def probabilities(self, pixels: Tensor) -> Tensor:
        """Return calibrated probabilities `[N, classes]`, float32 on the CPU; see `logits`."""
        return torch.softmax(self.logits(pixels) / self.temperature, -1)


@torch.no_grad()
def _try_out(
    fitted: Fitted, backbone: Backbone, at: Mapping[str, float], classes: int, device: torch.device
) -> None:
    """Classify a blank map, so that what does not fit together is found before any image is read.

    Raises:
        ValueError: the logits are not of so many classes.
    """
    blank = torch.zeros(1, 1, backbone.tokens, backbone.width, dtype=torch.float16, device=device)
    features = MappedFeatures(blank, backbone.pooling, backbone.state, device)
    shape = tuple(fitted.logits(features, at).shape)
    if shape != (1, classes):
        raise ValueError(f"it gives logits of the shape {list(shape)} for {classes} classes")


def _knobs(card: Mapping[str, Any], alpha: float | None, folder: Path | None) -> dict[str, float]:
    at = {name: float(value) for name, value in card["knobs"].items()}
    if alpha is None:
        return at
    name, where = ("alpha", _task_id(card)) if folder is None else ("--alpha", str(folder))
    if "alpha" not in at:
        raise InputError(
            f"The head in {where} is of {card['method']['title']}, which has no alpha: leave "
            f"{name} out."
        )
    if not 0.0 <= alpha <= 1.0:
        raise InputError(f"{name} is {alpha:g}, and must lie between 0 (zero-shot) and 1 (tuned).")
    return {**at, "alpha": alpha}


def _beside(folder: Path, named: str | None) -> str | None:
    """Return the file of a backbone: the copy that a packed head has beside it, or as named."""
    packed = None if named is None else folder / BACKBONE / Path(named).name
    return str(packed) if packed is not None and packed.is_file() else named


def _kept_classifier(folder: Path, card: Mapping[str, Any]) -> Tensor | None:
    """Return the text embeddings that lie beside a packed head, or that its sweep keeps."""
    if (folder / CLASSIFIER).is_file():
        return load_classifier(folder)
    for sweep in folder.resolve().parents:
        task = sweep / _TASKS / _task_id(card)
        if (task / CLASSIFIER).is_file():
            kept = TaskFacts.load(task).card
            same = kept.get("prompts_digest") == card.get("prompts_digest")
            return load_classifier(task) if same else None
    return None


def _task_id(card: Mapping[str, Any]) -> str:
    return Task(str(card["dataset"]), shots_of(card["shots"]), int(card["seed"])).id


def _classifier(backbone: Backbone, card: Mapping[str, Any], folder: Path) -> Tensor:
    names = card.get("names") or [[name] for name in card["class_names"]]
    prompts = render_names(names, card["templates"])
    known = digest_json(prompts) == card.get("prompts_digest")
    if len(prompts) != len(card["class_names"]) or not known:
        raise InputError(
            f"The prompts of the head in {folder} are not its templates with its class names "
            f"(they are {card.get('prompts')!r}), and its card does not hold them: name the head "
            "in its sweep's folder, which keeps their embeddings."
        )
    return backbone.classifier_of(prompts, card["class_names"], distinct=False)
