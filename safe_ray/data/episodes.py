"""Few-shot episodes: CoOp's sampling, to the sample.

CoOp seeds Python's `random` once, then draws the shots of the train list and, going on with the
same generator, the validation samples (`generate_fewshot_dataset` in
https://github.com/KaiyangZhou/Dassl.pytorch/blob/master/dassl/data/datasets/base_dataset.py, called
from https://github.com/KaiyangZhou/CoOp/tree/main/datasets). Numbers on these episodes are
therefore comparable with those that the field prints. Where others draw differently, theirs are
named in `CONVENTIONS`.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import pyarrow as pa

from safe_ray.data.manifest import Manifest
from safe_ray.errors import InputError, nearest
from safe_ray.files import sha256_hex
from safe_ray.specs import ALL_SHOTS

VALIDATION_SHOTS = 4
HELD_OUT_SHARE = 0.2
"""Of each class's training images, where some are held out for validation."""
LEAST_TO_HOLD_OUT = 10
"""Training images of the smallest class from which on a fifth, two images or more, says enough."""
DIGEST_LENGTH = 16


@dataclass(frozen=True)
class Convention:
    """How an episode is drawn, after `random` was seeded once.

    Attributes:
        validation_first: the validation samples are drawn before the shots.
        repeat_train: a class with fewer samples than shots is drawn from with repetition.
        repeat_validation: likewise for the validation samples.
    """

    validation_first: bool = False
    repeat_train: bool = False
    repeat_validation: bool = False


CONVENTIONS: Mapping[str, Convention] = {
    "coop": Convention(),
    # https://github.com/MaxZanella/CLIP-LoRA/tree/main/datasets
    "clip_lora": Convention(validation_first=True, repeat_train=True, repeat_validation=True),
    # https://github.com/gaopengcuhk/Tip-Adapter/blob/main/datasets/utils.py
    "tip_adapter": Convention(repeat_train=True),
}

ValidationSource = Literal["val", "train", "held_out", "none"]


@dataclass(frozen=True)
class Episode:
    """The support and validation samples of one task.

    Attributes:
        dataset: the name of the manifest.
        shots: training samples a class that were asked for; `ALL_SHOTS` for all of them.
        seed: of the drawing.
        train: rows of the train split, in the order in which they were drawn.
        validation: rows to choose by, likewise; there may be none.
        train_digest: over the lines `path<TAB>label` of `train`.
        validation_digest: over those of `validation`.
        digest: over those of both.
        source: the split that `validation` comes from; from `train` it is what the shots left, and
            `held_out` is a share of each class's training samples.
    """

    dataset: str
    shots: int
    seed: int
    train: pa.Table
    validation: pa.Table
    train_digest: str
    validation_digest: str
    digest: str
    source: ValidationSource


def draw_episode(
    manifest: Manifest,
    shots: int,
    seed: int,
    convention: str = "coop",
    full: bool = False,
    held_out: bool = False,
) -> Episode:
    """Draw `shots` samples a class for training and up to 4 a class for validation.

    Classes are taken in the order in which they first appear in the train (then the val) split.
    A class with fewer samples than asked for gives all it has, in order, unless the convention
    repeats some. A data set without a val split is validated on what the shots leave of its train
    split, if they leave something of every class, and else not at all. The test split is never
    looked at.

    With `held_out`, a fifth of each class's training samples (at least one, and never all) is drawn
    for validation first, so that it has the classes in the shares of the train split, and the shots
    are drawn from the others. A class with one sample keeps it for training.

    Args:
        manifest: the data set.
        shots: training samples a class; `ALL_SHOTS` takes all, in their order and without
            repetition.
        seed: of Python's `random`.
        convention: a key of `CONVENTIONS`.
        full: take the whole val split for validation, in its order, rather than draw from it.
        held_out: validate on training samples that are held out, whether there is a val split or
            not.

    Raises:
        InputError: shots below 1, a negative seed, or an unknown convention.
    """
    if shots < 1:
        raise InputError(f"shots is {shots}: it must be at least 1.")
    if seed < 0:
        raise InputError(f"The seed of an episode is {seed}: it must not be negative.")
    if convention not in CONVENTIONS:
        raise InputError(
            f"The convention of sampling {convention!r} is unknown: use one of "
            f"{', '.join(map(repr, CONVENTIONS))}.{nearest(convention, CONVENTIONS)}"
        )
    how = CONVENTIONS[convention]
    rng = random.Random(seed)
    train_split, val_split = manifest.split("train"), manifest.split("val")
    few = min(shots, VALIDATION_SHOTS)
    source: ValidationSource = "val" if val_split.num_rows else "train"
    if held_out:
        train, validation = _hold_out(train_split, shots, rng, how)
        source = "held_out" if validation else "none"
    elif source == "train":
        train, validation = _draw_both(train_split, shots, few, rng, how)
        source = "train" if validation else "none"
    elif how.validation_first:
        validation = _draw(val_split, few, rng, how.repeat_validation)
        train = _draw(train_split, shots, rng, how.repeat_train)
    else:
        train = _draw(train_split, shots, rng, how.repeat_train)
        validation = _draw(val_split, few, rng, how.repeat_validation)
    drawn_from = val_split if source == "val" else train_split
    validation_table = drawn_from.take(_indices(validation))
    if full:
        source, validation_table = "val" if val_split.num_rows else "none", val_split
    train_table = train_split.take(_indices(train))
    train_lines, validation_lines = _lines(train_table), _lines(validation_table)
    return Episode(
        dataset=manifest.name,
        shots=shots,
        seed=seed,
        train=train_table,
        validation=validation_table,
        train_digest=_digest(train_lines),
        validation_digest=_digest(validation_lines),
        digest=_digest([*train_lines, *validation_lines]),
        source=source,
    )


def smallest_class(table: pa.Table) -> int:
    """Return how many samples the class with the fewest has, of those that have any."""
    return min(map(len, _rows_by_class(table)), default=0)


def _draw(table: pa.Table, shots: int, rng: random.Random, repeat: bool) -> list[int]:
    return [row for rows in _rows_by_class(table) for row in _draw_class(rows, shots, rng, repeat)]


def _draw_both(
    table: pa.Table, shots: int, few: int, rng: random.Random, how: Convention
) -> tuple[list[int], list[int]]:
    """Draw the shots, and validation samples from the rest; none if a class has no rest."""
    classes = _rows_by_class(table)
    enough = all(len(rows) > shots for rows in classes)
    train: list[int] = []
    validation: list[int] = []
    if how.validation_first and enough:
        for rows in classes:
            drawn = rng.sample(rows, min(len(rows), shots + few))
            train += drawn[:shots]
            validation += drawn[shots:]
        return train, validation
    train = [row for rows in classes for row in _draw_class(rows, shots, rng, how.repeat_train)]
    if enough:
        used = set(train)
        for rows in classes:
            validation += _draw_class([row for row in rows if row not in used], few, rng, False)
    return train, validation


def _hold_out(
    table: pa.Table, shots: int, rng: random.Random, how: Convention
) -> tuple[list[int], list[int]]:
    """Draw a share of every class for validation, and the shots from the rest."""
    train: list[int] = []
    validation: list[int] = []
    for rows in _rows_by_class(table):
        count = min(max(round(HELD_OUT_SHARE * len(rows)), 1), len(rows) - 1)
        held = rng.sample(rows, count)
        out = set(held)
        validation += held
        rest = [row for row in rows if row not in out]
        train += _draw_class(rest, shots, rng, how.repeat_train)
    return train, validation


def _draw_class(rows: list[int], shots: int, rng: random.Random, repeat: bool) -> list[int]:
    if shots == ALL_SHOTS:
        return rows
    if len(rows) >= shots:
        return rng.sample(rows, shots)
    # Without repetition a class that is too small draws nothing from the generator.
    return rng.choices(rows, k=shots) if repeat else rows


def _rows_by_class(table: pa.Table) -> list[list[int]]:
    rows_of: dict[int, list[int]] = {}
    for row, label in enumerate(table.column("label").to_pylist()):
        rows_of.setdefault(label, []).append(row)
    return list(rows_of.values())


def _indices(rows: Sequence[int]) -> pa.Array:
    return pa.array(rows, pa.int64())


def _lines(table: pa.Table) -> list[str]:
    paths, labels = table.column("path").to_pylist(), table.column("label").to_pylist()
    return [f"{path}\t{label}" for path, label in zip(paths, labels, strict=True)]


def _digest(lines: Sequence[str]) -> str:
    return sha256_hex("\n".join(lines).encode(), length=DIGEST_LENGTH)
