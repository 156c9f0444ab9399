"""Which of the given images decide, where a person says which of them belong together."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from safe_ray.classifier.samples import Sample, samples_of
from safe_ray.data.episodes import HELD_OUT_SHARE, VALIDATION_SHOTS
from safe_ray.errors import InputError


@dataclass(frozen=True)
class Deciding:
    """What a person says of the images that decide: which they are, or what belongs together.

    Attributes:
        samples: images that decide and do not train.
        labels: of each of these.
        groups: of each image that was given to train on; images of one group all train, or all
            decide. None where `samples` decide.
        shots: images of each class that train; None for all.
        seed: draws the groups that decide.
    """

    samples: Sequence[Sample] = ()
    labels: Any = ()
    groups: Any = None
    shots: int | None = None
    seed: int = 1


def deciding_of(
    labels: Any,
    groups: Any,
    validation_data: Any,
    validation: str,
    shots: int | Literal["all"],
    seed: int,
) -> Deciding | None:
    """Return what a person says of the images that decide; None if nothing was said.

    Args:
        labels: of the images that train; None where a folder has them.
        groups: of these images, or None.
        validation_data: images that decide with their labels, or None.
        validation: where the images that decide come from otherwise.
        shots: images of each class that train.
        seed: draws the groups that decide.

    Raises:
        InputError: both are given, or one of them beside something that says the same.
    """
    if groups is None and validation_data is None:
        return None
    name = "validation_data" if groups is None else "groups"
    if groups is not None and validation_data is not None:
        raise InputError(
            "groups say which of the images decide, and so does validation_data: give one of them."
        )
    if labels is None:
        raise InputError(
            f"{name} goes with images and their labels: of a folder, those in 'val' decide."
        )
    if validation not in ("auto", "full"):
        raise InputError(
            f"validation={validation!r} says which images decide, and so does {name}: leave "
            "validation at 'auto'."
        )
    if groups is not None:
        return Deciding(groups=groups, shots=shots if isinstance(shots, int) else None, seed=seed)
    if not isinstance(validation_data, tuple | list) or len(validation_data) != 2:
        raise InputError("validation_data is not two things: give (images, labels).")
    others = samples_of(validation_data[0])
    if not others:
        raise InputError("validation_data has no images: give some of each class.")
    named = [replace(other, name=f"validation_data/{other.name}") for other in others]
    return Deciding(named, validation_data[1])


def checked_groups(groups: Any, count: int) -> np.ndarray:
    """Return a group for each of so many images, as whole numbers.

    Raises:
        InputError: there are more or fewer.
    """
    given = np.asarray(groups)
    if given.shape != (count,):
        shape = "x".join(map(str, given.shape)) or "1"
        raise InputError(
            f"There are {shape} groups for {count} images: give one for each, such as the film "
            "that a frame is from."
        )
    indices: np.ndarray = np.unique(given.astype(str), return_inverse=True)[1]
    return indices


def validation_rows(
    labels: np.ndarray, groups: np.ndarray, shots: int | None, seed: int
) -> np.ndarray:
    """Choose the images that decide, so that no group has some of these and others too.

    Of each class, groups go to validation in a random order: until there are as many images as
    shots, and four at most, while as many as shots are left to train on; or a fifth, where all
    train. A class whose images are all of one group trains alone.

    Args:
        labels: int `[n]`, the class of each image.
        groups: int `[n]`.
        shots: images of each class that train; None for all.
        seed: of the order.

    Returns:
        bool `[n]`.

    Raises:
        InputError: no class can spare a group.
    """
    rng = random.Random(seed)
    decides: dict[int, bool] = {}
    for label in np.unique(labels).tolist():
        own = groups[labels == label]
        wanted = (
            max(1, round(HELD_OUT_SHARE * len(own)))
            if shots is None
            else min(shots, VALIDATION_SHOTS)
        )
        order = np.unique(own).tolist()
        rng.shuffle(order)
        sizes = {group: int((own == group).sum()) for group in order}
        # Other classes have sent these where they are.
        chosen = sum(sizes[group] for group in order if decides.get(group, False))
        left = len(own) - chosen
        least = max(1, len(own) // 2) if shots is None else min(shots, len(own) - 1)
        for group in order:
            if group in decides:
                continue
            fits = left - sizes[group] >= least
            decides[group] = chosen < wanted and fits
            if decides[group]:
                chosen += sizes[group]
                left -= sizes[group]
    rows: np.ndarray = np.array([decides[group] for group in groups.tolist()])
    for label in np.unique(labels).tolist():
        if rows[labels == label].all():
            # A class with nothing to train on takes back what others have sent to decide.
            rows[np.isin(groups, groups[labels == label])] = False
    if not rows.any():
        raise InputError(
            f"The {len(labels)} images are of {len(np.unique(groups))} groups, and no class can "
            "spare one to decide by: give images of other groups, or validation_data=(images, "
            "labels)."
        )
    return rows
