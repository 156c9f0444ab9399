"""The preprocessing of one image: view 0 is the model's evaluation crop, the others augment it.

A view is a function of the pixels, the model's preprocessing, the sample's name and the number of
the view: any process on any machine makes the same pixels.
"""

from __future__ import annotations

import hashlib
import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torchvision.transforms.functional as functional
from PIL import Image
from torchvision.transforms import InterpolationMode

# Part of what keys stored features: change it whenever `augmented_view` makes other pixels.
AUGMENTATION = "random-resized-crop scale 0.5..1 ratio 3/4..4/3 bicubic, flip 0.5, v1"

CROP_SCALE = (0.5, 1.0)
CROP_RATIO = (3 / 4, 4 / 3)
CROP_TRIES = 10
FLIP_PROBABILITY = 0.5

RESIZE_MODES = ("shortest", "longest", "squash")


@dataclass(frozen=True)
class Preprocessing:
    """How a model wants its images; the fields are those of open_clip's `preprocess_cfg`.

    Attributes:
        size: height and width of the model's input, in pixels.
        mean: of each of the three channels, on the scale where white is 1.
        std: of each of the three channels, on the same scale.
        interpolation: `bicubic` or `bilinear`; anything else means bicubic, as in open_clip.
        resize_mode: `shortest` (then centre crop), `longest` (then pad) or `squash`.
        fill: the grey level, 0 to 255, of the padding.
    """

    size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: str = "bicubic"
    resize_mode: str = "shortest"
    fill: int = 0

    def __post_init__(self) -> None:
        if self.resize_mode not in RESIZE_MODES:
            raise ValueError(f"resize_mode is {self.resize_mode!r}, not one of {RESIZE_MODES}")

    @classmethod
    def from_open_clip(cls, config: Mapping[str, Any]) -> Preprocessing:
        """Return the preprocessing that an open_clip model carries as `visual.preprocess_cfg`."""
        size = config["size"]
        if isinstance(size, Sequence):
            if len(set(size)) != 1:
                raise ValueError(f"an input of {tuple(size)} pixels is not square")
            size = size[0]
        return cls(
            size=int(size),
            mean=tuple(float(value) for value in config["mean"]),
            std=tuple(float(value) for value in config["std"]),
            interpolation=str(config["interpolation"]),
            resize_mode=str(config["resize_mode"]),
            fill=int(config["fill_color"]),
        )

    def to_json(self) -> dict[str, Any]:
        """Return the fields as JSON values."""
        return {
            "size": self.size,
            "mean": list(self.mean),
            "std": list(self.std),
            "interpolation": self.interpolation,
            "resize_mode": self.resize_mode,
            "fill": self.fill,
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Preprocessing:
        """Return what `to_json` was called on."""
        return cls(**{**value, "mean": tuple(value["mean"]), "std": tuple(value["std"])})


def evaluation_view(image: Image.Image, preprocessing: Preprocessing) -> torch.Tensor:
    """Return the pixels that open_clip's evaluation transform hands to ToTensor and Normalize.

    Args:
        image: an RGB image, as `decode_image` returns it.
        preprocessing: of the model, with S pixels a side.

    Returns:
        uint8 [3, S, S].
    """
    size = preprocessing.size
    interpolation = (
        InterpolationMode.BILINEAR
        if preprocessing.interpolation == "bilinear"
        else InterpolationMode.BICUBIC
    )
    if preprocessing.resize_mode == "squash":
        resized = functional.resize(image, [size, size], interpolation)
    elif preprocessing.resize_mode == "longest":
        width, height = image.size
        ratio = max(width, height) / size
        inner = [round(height / ratio), round(width / ratio)]
        resized = _pad(functional.resize(image, inner, interpolation), size, preprocessing.fill)
    else:
        resized = functional.center_crop(
            functional.resize(image, [size], interpolation), [size, size]
        )
    return functional.pil_to_tensor(resized)


def seen_box(size: tuple[int, int], resize_mode: str) -> tuple[int, int, int, int]:
    """Return which part of an image its evaluation view shows.

    Args:
        size: width and height of the image.
        resize_mode: of the preprocessing.

    Returns:
        Left, top, right and bottom in pixels of the image; of a padded view they lie beyond it.
    """
    width, height = size
    if resize_mode == "squash":
        return 0, 0, width, height
    side = max(size) if resize_mode == "longest" else min(size)
    left, top = (width - side) // 2, (height - side) // 2
    return left, top, left + side, top + side


def augmented_view(
    image: Image.Image, preprocessing: Preprocessing, sample: str, view: int
) -> torch.Tensor:
    """Return a random resized crop of the image, bicubic, flipped half of the time.

    The crop covers 0.5 to 1 of the area at an aspect ratio of 3/4 to 4/3; it is drawn from a
    generator seeded with SHA-256 of the sample and the view, and from nothing else. The way of
    drawing is that of torchvision's RandomResizedCrop.

    Args:
        image: an RGB image, as `decode_image` returns it.
        preprocessing: of the model, with S pixels a side.
        sample: a name of the image that is the same everywhere, such as a digest of its bytes.
        view: the number of the view.

    Returns:
        uint8 [3, S, S].
    """
    rng = random.Random(hashlib.sha256(f"{sample}\n{view}".encode()).digest())
    top, left, height, width = _draw_crop(rng, image.height, image.width)
    flip = rng.random() < FLIP_PROBABILITY
    size = [preprocessing.size, preprocessing.size]
    crop = functional.resized_crop(image, top, left, height, width, size, InterpolationMode.BICUBIC)
    return functional.pil_to_tensor(functional.hflip(crop) if flip else crop)


def make_view(
    image: Image.Image, preprocessing: Preprocessing, sample: str, view: int
) -> torch.Tensor:
    """Return view 0, the evaluation crop, or a higher view, an augmentation: uint8 [3, S, S]."""
    if view == 0:
        return evaluation_view(image, preprocessing)
    return augmented_view(image, preprocessing, sample, view)


def normalise(pixels: torch.Tensor, preprocessing: Preprocessing) -> torch.Tensor:
    """Return what ToTensor and Normalize would: float32 on the device of the pixels.

    Args:
        pixels: uint8 [N, 3, S, S], or one image [3, S, S].
        preprocessing: its mean and standard deviation are used.
    """
    mean = torch.tensor(preprocessing.mean, dtype=torch.float32, device=pixels.device)
    std = torch.tensor(preprocessing.std, dtype=torch.float32, device=pixels.device)
    scaled = pixels.to(torch.float32).div_(255)
    return scaled.sub_(mean[:, None, None]).div_(std[:, None, None])


def _pad(image: Image.Image, size: int, fill: int) -> Image.Image:
    missing = (size - image.width, size - image.height)
    before = [amount // 2 for amount in missing]
    after = [(amount + 1) // 2 for amount in missing]
    return functional.pad(image, before + after, fill=fill)


def _draw_crop(rng: random.Random, height: int, width: int) -> tuple[int, int, int, int]:
    for _ in range(CROP_TRIES):
        area = height * width * rng.uniform(*CROP_SCALE)
        ratio = math.exp(rng.uniform(math.log(CROP_RATIO[0]), math.log(CROP_RATIO[1])))
        crop_width, crop_height = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < crop_width <= width and 0 < crop_height <= height:
            top = rng.randint(0, height - crop_height)
            left = rng.randint(0, width - crop_width)
            return top, left, crop_height, crop_width
    crop_height, crop_width = height, width
    if width / height < CROP_RATIO[0]:
        crop_height = round(width / CROP_RATIO[0])
    elif width / height > CROP_RATIO[1]:
        crop_width = round(height * CROP_RATIO[1])
    return (height - crop_height) // 2, (width - crop_width) // 2, crop_height, crop_width
