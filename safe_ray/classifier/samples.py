"""What people call images, as encoded bytes or places of files; and labels as classes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from safe_ray.data.images import BadImageError, as_rgb, decode_image
from safe_ray.data.locations import first_line, is_folder, locate
from safe_ray.data.sources import ImageSource
from safe_ray.errors import InputError, nearest

if TYPE_CHECKING:
    from torch import Tensor

    from safe_ray.data.views import Preprocessing

Names = Mapping[Any, str | Sequence[str]]
"""A name for each label, or several."""

_KINDS = (
    "PIL images, paths, uint8 arrays [height, width, 3] or uint8 tensors [3, height, width], or a "
    "folder"
)


@dataclass(frozen=True)
class Sample:
    """One image.

    Attributes:
        name: its path, or its place among the images that were given, for errors.
        source: its encoded bytes, or where they are.
    """

    name: str
    source: ImageSource

    def decode(self) -> Image.Image:
        """Return the image in mode RGB, upright.

        Raises:
            InputError: it cannot be read, or is no image.
        """
        try:
            return decode_image(self.source.read())
        except (BadImageError, OSError) as error:
            raise InputError(
                f"The image {self.name} cannot be read ({first_line(error)}): repair it, or leave "
                "it out."
            ) from error


def samples_of(images: Any) -> list[Sample]:
    """Return what somebody calls images, one after another.

    Args:
        images: one image or a sequence of them, or all images of a folder, by name. An image is
            a PIL image, a path or a URI, a uint8 array `[H, W, 3]` (or `[H, W]`, grey), or a uint8
            tensor `[3, H, W]`; several are a list, an array with one more dimension, or a table's
            column.

    Raises:
        InputError: something else is among them.
    """
    if isinstance(images, str | Path):
        return _at(str(images))
    if isinstance(images, Image.Image):
        return [Sample("0", _encoded(images, "0"))]
    if _is_pixels(images):
        if images.ndim not in (2, 3, 4):
            raise InputError(
                f"The images have the shape {list(images.shape)}: give {_KINDS}, or several."
            )
        images = [images] if images.ndim < 4 else list(images)
    if not hasattr(images, "__iter__"):
        raise InputError(f"{type(images).__name__} is no image: give {_KINDS}.")
    return [_sample(image, str(place)) for place, image in enumerate(images)]


def is_data_set(images: Any) -> bool:
    """Whether images are named by the one place where all of them are, with their labels."""
    return isinstance(images, str | Path)


def _at(text: str) -> list[Sample]:
    from safe_ray.prediction.images import find_pictures

    place = locate(text, Path.cwd())
    if not is_folder(place):
        return [Sample(text, ImageSource(file=place))]
    return [Sample(found.path, ImageSource(file=found.file)) for found in find_pictures([text], ())]


def _sample(image: Any, name: str) -> Sample:
    if isinstance(image, str | Path):
        return Sample(str(image), ImageSource(file=locate(str(image), Path.cwd())))
    if isinstance(image, bytes):
        return Sample(name, ImageSource(image=image))
    return Sample(name, _encoded(image, name))


def _encoded(image: Any, name: str) -> ImageSource:
    if isinstance(image, Image.Image):
        try:
            pixels = np.asarray(as_rgb(image))
        except BadImageError as error:
            raise InputError(f"The image {name} cannot be used ({error}): convert it.") from error
    elif _is_pixels(image):
        pixels = _pixels(image, name)
    else:
        raise InputError(f"The image {name} is a {type(image).__name__}: give {_KINDS}.")
    return ImageSource(image=_ppm(pixels))


def _is_pixels(image: Any) -> bool:
    if isinstance(image, np.ndarray):
        return image.dtype != object and image.dtype.kind not in "US"
    return _is_tensor(image)


def _is_tensor(image: Any) -> bool:
    return type(image).__module__.partition(".")[0] in ("torch", "torchvision") and hasattr(
        image, "detach"
    )


def _pixels(image: Any, name: str) -> np.ndarray:
    """Return uint8 `[H, W, 3]`."""
    tensor = _is_tensor(image)
    pixels: np.ndarray = image.detach().cpu().numpy() if tensor else image
    if pixels.dtype != np.uint8:
        raise InputError(
            f"The image {name} is of {pixels.dtype}: give uint8 values from 0 to 255, before any "
            "normalisation."
        )
    if tensor and pixels.ndim == 3:
        pixels = pixels.transpose(1, 2, 0)
    if pixels.ndim == 2 or (pixels.ndim == 3 and pixels.shape[2] == 1):
        pixels = np.repeat(pixels.reshape(*pixels.shape[:2], 1), 3, axis=2)
    if pixels.ndim != 3 or pixels.shape[2] != 3 or 0 in pixels.shape:
        order = "a tensor has [3, height, width]" if tensor else "an array has [height, width, 3]"
        raise InputError(f"The image {name} has the shape {list(image.shape)}: {order}.")
    return pixels


def _ppm(pixels: np.ndarray) -> bytes:
    """Return RGB pixels as a file without compression, which any reader takes."""
    height, width = pixels.shape[:2]
    return f"P6\n{width} {height}\n255\n".encode() + np.ascontiguousarray(pixels).tobytes()


def batches_of_pixels(
    samples: Sequence[Sample], preprocessing: Preprocessing, size: int
) -> Iterator[Tensor]:
    """Yield the evaluation views of images, uint8 `[n, 3, S, S]`, so many at once.

    Raises:
        InputError: an image cannot be read.
    """
    import torch

    from safe_ray.data.views import evaluation_view

    with ThreadPoolExecutor(thread_name_prefix="decode") as threads:
        for first in range(0, len(samples), size):
            views = threads.map(
                lambda sample: evaluation_view(sample.decode(), preprocessing),
                samples[first : first + size],
            )
            yield torch.stack(list(views))


@dataclass(frozen=True)
class Labels:
    """Labels, and the classes that they are of.

    Attributes:
        classes: the distinct labels, sorted.
        indices: int64, the place of each label among them.
    """

    classes: np.ndarray
    indices: np.ndarray

    @staticmethod
    def of(labels: Any, count: int) -> Labels:
        """Return what somebody gave for so many images.

        Raises:
            InputError: not as many, of another type than text or whole numbers, or of one class.
        """
        given = np.asarray(labels)
        if given.dtype == object and len({type(label) for label in given.ravel()}) == 1:
            given = np.array(given.tolist())
        if given.ndim != 1 or len(given) != count:
            shape = "x".join(map(str, given.shape)) or "1"
            raise InputError(f"There are {shape} labels for {count} images: give one for each.")
        if given.dtype.kind not in "biuUS":
            raise InputError(
                f"The labels are of {given.dtype}: give the name or the number of each image's "
                "class, as text or as whole numbers."
            )
        classes, indices = np.unique(given, return_inverse=True)
        if len(classes) < 2:
            raise InputError(
                f"All {count} images are of one class: there is nothing to tell apart, give at "
                "least two."
            )
        return Labels(classes, indices.astype(np.int64))

    def places(self, labels: Any, count: int) -> np.ndarray:
        """Return the place of each of so many other labels among the classes, int64.

        Raises:
            InputError: not as many, or one that no class has.
        """
        given = np.asarray(labels)
        if given.shape != (count,):
            raise InputError(
                f"There are {len(given) if given.ndim else 1} labels for {count} validation "
                "images: give one for each."
            )
        known = {label: place for place, label in enumerate(self.classes.tolist())}
        for label in given.tolist():
            if label not in known:
                raise InputError(
                    f"A validation image has the label {label!r}, and no image that trains has "
                    f"it.{nearest(str(label), list(map(str, known)))}"
                )
        return np.array([known[label] for label in given.tolist()], np.int64)


def names_of(
    labels: Sequence[Any], given: Names | None, usual: Sequence[tuple[str, ...]]
) -> tuple[tuple[str, ...], ...]:
    """Return what the prompts call each class: one name, or several.

    Args:
        labels: of the classes.
        given: names for some of them.
        usual: the names of those that are given none.

    Raises:
        InputError: a name is for no class, or is no text.
    """
    names = {
        str(label): [own] if isinstance(own, str) else own for label, own in (given or {}).items()
    }
    known = [str(label) for label in labels]
    for label, own in names.items():
        if label not in known:
            raise InputError(
                f"class_names names {label!r}, and no image has this label."
                + (nearest(label, known) or f" There are {', '.join(map(repr, known[:12]))}.")
            )
        if (
            not isinstance(own, Sequence)
            or not own
            or not all(isinstance(name, str) and name.strip() for name in own)
        ):
            raise InputError(
                f"class_names calls {label!r} {own!r}: give a name, or a list of several."
            )
    return tuple(tuple(names.get(label, own)) for label, own in zip(known, usual, strict=True))
