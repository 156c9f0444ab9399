"""What classifies images: a head with the backbone of its card, or an exported bundle."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from safe_ray.heads.artifact import load_card
from safe_ray.prediction.bundle_files import is_bundle, read_bundle
from safe_ray.prediction.images import other_names

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from safe_ray.data.views import Preprocessing


class Model(Protocol):
    """What pixels are classified by."""

    @property
    def class_names(self) -> tuple[str, ...]:
        """The classes, in the order of the logits."""
        ...

    @property
    def preprocessing(self) -> Preprocessing:
        """How an image is made into pixels."""
        ...

    @property
    def temperature(self) -> float:
        """What calibrates logits."""
        ...

    def logits(self, pixels: Tensor) -> Tensor:
        """Return logits `[N, classes]`, float32 on the CPU, of uint8 pixels `[N, 3, S, S]`."""
        ...


def names_and_temperature(folder: Path) -> tuple[tuple[str, ...], float]:
    """Return a model's class names and temperature, without loading it.

    Raises:
        InputError: its card or its record cannot be used.
    """
    if is_bundle(folder):
        record = read_bundle(folder)
        return record.class_names, record.temperature
    card = load_card(folder)
    temperature = float(card.get("calibration", {}).get("temperature", 1.0))
    return tuple(card["class_names"]), temperature


def others_of(folder: Path) -> dict[str, str]:
    """Return what else the classes of a model are called; see `other_names`.

    Raises:
        InputError: its card cannot be used.
    """
    return {} if is_bundle(folder) else other_names(load_card(folder))


def load_model(
    folder: Path,
    device: torch.device | None = None,
    alpha: float | None = None,
    trusted: Sequence[str] = (),
) -> Model:
    """Load a head, or a bundle; see `Predictor.load` and `load_bundle`."""
    if is_bundle(folder):
        from safe_ray.prediction.bundles import load_bundle

        return load_bundle(folder, device, alpha, trusted)
    from safe_ray.prediction.predictor import Predictor

    return Predictor.load(folder, device, alpha, trusted)
