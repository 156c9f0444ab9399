"""From a chunk of images to the pixels of their views."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from safe_ray.errors import InputError
from safe_ray.features.inventory import sample_digest
from safe_ray.visibility import check_sight

if TYPE_CHECKING:
    from safe_ray.data.views import Preprocessing


def decode_views(
    chunk: pa.Table, preprocessing: dict[str, Any], beacon: dict[str, Any] | None = None
) -> dict[str, np.ndarray]:
    """Decode each image of `chunk` once and make the views that are wanted of it.

    Returns:
        `sample` and `view` of each row, and its `pixels`, uint8 `[n, 3, S, S]`.

    Raises:
        InputError: a file is gone, is not an image, or changed since the inventory.
        BlindNodeError: it cannot be read on a node that does not see the storage, either.
    """
    import torch

    from safe_ray.data.views import Preprocessing

    # Views are single images; threads would only contend with the trunk for cores.
    torch.set_num_threads(1)
    recipe = Preprocessing.from_json(preprocessing)
    samples: list[str] = []
    views: list[int] = []
    pixels = np.empty(
        (sum(map(len, chunk["views"].to_pylist())), 3, recipe.size, recipe.size), np.uint8
    )
    for row in chunk.to_pylist():
        wanted = row["views"]
        first = len(samples)
        pixels[first : first + len(wanted)] = views_of(row, recipe, beacon)
        samples += [row["sample"]] * len(wanted)
        views += wanted
    return {"sample": np.array(samples), "view": np.array(views, np.int16), "pixels": pixels}


def views_of(
    row: Mapping[str, Any], recipe: Preprocessing, beacon: dict[str, Any] | None = None
) -> np.ndarray:
    """Decode one image and make the views that are wanted of it: uint8 `[views, 3, S, S]`.

    Args:
        row: of a chunk.
        recipe: how the model wants its images.
        beacon: see `decode_views`.

    Raises:
        InputError, BlindNodeError: see `decode_views`.
    """
    from safe_ray.data.images import BadImageError, decode_image
    from safe_ray.data.locations import first_line
    from safe_ray.data.sources import ImageSource
    from safe_ray.data.views import make_view

    source = ImageSource(row["image"], row["file"], row["offset"] or 0, row["length"])
    name = source.name or row["path"] or row["sample"]
    try:
        encoded = source.read()
        if sample_digest(encoded) != row["sample"]:
            raise InputError(f"{name} changed while it was being read: run the command again.")
        image = decode_image(encoded)
    except OSError as error:
        check_sight(beacon)
        raise InputError(
            f"{name} cannot be read on the node that extracts it ({first_line(error)}): "
            "keep images where every node sees them."
        ) from error
    except BadImageError as error:
        raise InputError(
            f"{name} is not a sound image ({error}): repair or remove it, or leave such images "
            "out with data.skip_bad=true."
        ) from error
    return np.stack([make_view(image, recipe, row["sample"], v).numpy() for v in row["views"]])
