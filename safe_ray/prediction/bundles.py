"""Exported bundles as models: with open_clip's files by this package, ONNX by onnxruntime."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import open_clip
import torch
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor

from safe_ray.backbones.creation import quiet
from safe_ray.backbones.openclip import cut_model
from safe_ray.data.locations import first_line
from safe_ray.data.views import Preprocessing
from safe_ray.errors import InputError
from safe_ray.features.trunk import run_trunk
from safe_ray.methods.base import check_module
from safe_ray.methods.features import MappedFeatures
from safe_ray.methods.linear import Linear
from safe_ray.outside import parse_json
from safe_ray.prediction.bundle_files import (
    CLASSIFIER,
    CONFIG,
    EXTRA,
    GRAPH,
    MODEL,
    ORIGINAL,
    Record,
    read_bundle,
    read_content,
)
from safe_ray.specs import BackboneSpec

# Of any number in a configuration, and of layers in all: none of open_clip's own comes near.
_LARGEST_NUMBER, _MOST_LAYERS = 2**20, 1024


@dataclass(frozen=True)
class BundledModel:
    """A bundle that has been loaded; see `safe_ray.prediction.models.Model`.

    Attributes:
        record: of the bundle.
        run: uint8 pixels `[N, 3, S, S]` to logits `[N, classes]`.
    """

    record: Record
    run: Callable[[Tensor], Tensor]

    @property
    def class_names(self) -> tuple[str, ...]:
        """See `Model`."""
        return self.record.class_names

    @property
    def preprocessing(self) -> Preprocessing:
        """See `Model`."""
        return Preprocessing(**asdict(self.record.preprocessing))

    @property
    def temperature(self) -> float:
        """See `Model`."""
        return self.record.temperature

    @torch.no_grad()
    def logits(self, pixels: Tensor) -> Tensor:
        """See `Model`."""
        return self.run(pixels).float().cpu()

    def probabilities(self, pixels: Tensor) -> Tensor:
        """Return calibrated probabilities `[N, classes]`, float32 on the CPU."""
        return torch.softmax(self.logits(pixels) / self.temperature, -1)


def load_bundle(
    folder: Path,
    device: torch.device | None = None,
    alpha: float | None = None,
    trusted: Sequence[str] = (),
) -> BundledModel:
    """Read a bundle in the formats `open_clip` and `onnx`.

    Args:
        folder: with `bundle.json`.
        device: where to compute; a CPU by default. ONNX computes on a CPU.
        alpha: instead of the exported one, 0 to 1, where the bundle can have another.
        trusted: modules that the bundle may name; see `safe_ray.methods.base.check_module`.

    Raises:
        InputError: a damaged file, files that do not fit each other, an alpha that the bundle
            cannot have, the format `torch`, a module that nobody trusts, or no onnxruntime.
    """
    record = read_bundle(folder)
    if alpha is not None and not record.alpha_is_open:
        raise InputError(
            f"The bundle in {folder} has its blend in itself: leave --alpha out, or export the "
            "head with --alpha."
        )
    if alpha is not None and not 0.0 <= alpha <= 1.0:
        raise InputError(f"--alpha is {alpha:g}, and must lie between 0 (zero-shot) and 1 (tuned).")
    if record.format == "torch":
        raise InputError(
            f"{folder} holds a program of torch.export, and to load one from anybody is to run "
            "it: use the lines in its bundle.json, or export the head with --format open_clip."
        )
    # A file can be wrong in more ways than its readers have errors for.
    try:
        if record.format == "onnx":
            model = BundledModel(record, _onnx(folder, record))
        else:
            device = device or torch.device("cpu")
            model = BundledModel(record, _open_clip(folder, record, device, alpha, trusted))
        side = record.preprocessing.size
        shape = tuple(model.logits(torch.zeros(1, 3, side, side, dtype=torch.uint8)).shape)
    except InputError:
        raise
    except Exception as error:
        raise InputError(
            f"The files of {folder} do not fit each other ({first_line(error)}): export the head "
            "again."
        ) from error
    if shape != (1, len(record.class_names)):
        raise InputError(
            f"The bundle in {folder} names {len(record.class_names)} classes, and its model gives "
            f"logits of the shape {list(shape)} for an image: export the head again."
        )
    return model


def _open_clip(
    folder: Path,
    record: Record,
    device: torch.device,
    alpha: float | None,
    trusted: Sequence[str],
) -> Callable[[Tensor], Tensor]:
    if record.pooling is not None:
        check_module(record.pooling, trusted)
    original, classifier = (_tensors(folder, record, name) for name in (ORIGINAL, CLASSIFIER))
    weights, bias = classifier["weights"], classifier["bias"]
    if len(weights) != len(record.class_names) or len(bias) != len(weights):
        raise InputError(
            f"{folder / CLASSIFIER} is for {len(weights)} classes, and the bundle names "
            f"{len(record.class_names)}: export the head again."
        )
    config = parse_json(read_content(folder, record, CONFIG))
    model = _built(folder, config, _tensors(folder, record, MODEL))
    spec = BackboneSpec(folder.name, folder.name, None, pooling=record.pooling)
    backbone = cut_model(spec, model, config["model_cfg"], device, ("trunk", "pooling"))
    if backbone.preprocessing.size != record.preprocessing.size:
        raise InputError(
            f"{folder / CONFIG} is of images with {backbone.preprocessing.size} pixels a side, and "
            f"the bundle's have {record.preprocessing.size}: export the head again."
        )
    if {name: tensor.shape for name, tensor in original.items()} != {
        name: tensor.shape for name, tensor in backbone.state.items()
    }:
        raise ValueError(f"{ORIGINAL} is not of the pooling in {MODEL}")
    backbone = replace(backbone, preprocessing=Preprocessing(**asdict(record.preprocessing)))
    backbone.trunk.to(memory_format=torch.channels_last)
    tuned = backbone.state
    linear = Linear(
        weights.to(device),
        record.logit_scale,
        tuned,
        float(record.alpha or 0.0) if alpha is None else alpha,
        bias.to(device),
        record.blended or "features",
    )

    def run(pixels: Tensor) -> Tensor:
        maps = run_trunk(backbone, pixels, "fp32", device).unsqueeze(1)
        features = MappedFeatures(maps, backbone.pooling, original, device)
        return linear.logits(features.pooled([tuned])[0, :, 0], features.original[:, 0])

    return run


def _tensors(folder: Path, record: Record, name: str) -> dict[str, Tensor]:
    content = read_content(folder, record, name)
    try:
        return {key: value.float() for key, value in load(content).items()}
    except (SafetensorError, ValueError) as error:
        raise InputError(f"{folder / name} is damaged ({error}): export the head again.") from error


def _built(folder: Path, config: Any, weights: Mapping[str, Tensor]) -> Any:
    """Return open_clip's model with these weights.

    It is first built without memory, so that a configuration cannot ask for more than the file of
    the weights has.
    """
    _check_numbers(config, folder)
    with quiet(), torch.device("meta"):
        model = open_clip.create_model(f"local-dir:{folder}", load_weights=False, device="meta")
    wanted = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    found = {name: tuple(tensor.shape) for name, tensor in weights.items()}
    if wanted != found:
        name = next(key for key in {**wanted, **found} if wanted.get(key) != found.get(key))
        raise ValueError(f"{name} in {MODEL} is not as {CONFIG} has it")
    model.load_state_dict(dict(weights), assign=True)
    return model.eval()


def _check_numbers(config: Any, folder: Path) -> None:
    """Refuse a configuration of absurd size before anything is built of it."""
    if not isinstance(config, dict) or not isinstance(config.get("model_cfg"), dict):
        raise InputError(f"{folder / CONFIG} is no configuration of open_clip's: export again.")
    layers = 0
    pending: list[tuple[str, Any]] = [("", config)]
    while pending:
        name, value = pending.pop()
        if isinstance(value, dict):
            pending.extend(value.items())
        elif isinstance(value, list):
            pending.extend((name, each) for each in value)
        elif isinstance(value, int | float) and not isinstance(value, bool):
            layers += int(value) if "layers" in name or "depth" in name else 0
            if not math.isfinite(value) or abs(value) > _LARGEST_NUMBER or layers > _MOST_LAYERS:
                raise InputError(
                    f"{folder / CONFIG} has {name}={value}, which is no size of a model: export "
                    "the head again."
                )


def _onnx(folder: Path, record: Record) -> Callable[[Tensor], Tensor]:
    try:
        import onnxruntime
    except ImportError as error:
        raise InputError(
            f"{folder} is an ONNX bundle, which needs onnxruntime ({error}): {EXTRA}."
        ) from error
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    # From memory: the file that was checked is the one that is run, and it can name no other.
    session = onnxruntime.InferenceSession(
        read_content(folder, record, GRAPH), options, providers=["CPUExecutionProvider"]
    )

    def run(pixels: Tensor) -> Tensor:
        (found,) = session.run(["logits"], {"pixels": pixels.cpu().numpy()})
        return torch.from_numpy(found)

    return run
