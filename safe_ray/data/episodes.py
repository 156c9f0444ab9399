"""Few-shot episodes: CoOp's sampling, to the sample.

CoOp seeds Python's `random` once, then draws the shots of the train list and, going on with the
same generator, the validation samples (`generate_fewshot_dataset` in
https://github.com/KaiyangZhou/Dassl.pytorch/blob/master/dassl/data/datasets/base_dataset.py, called
from https://github.com/KaiyangZhou/CoOp/tree/main/datasets). Numbers on these episodes are
therefore comparable with those that the field prints.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

import pyarrow as pa

from safe_ray.data.manifest import Manifest
from safe_ray.errors import InputError
from safe_ray.files import sha256_hex

VALIDATION_SHOTS = 4
DIGEST_LENGTH = 16


@dataclass(frozen=True)
class Episode:
    """The support and validation samples of one task.

    Attributes:
        dataset: the name of the manifest.
        shots: training samples a class that were asked for.
        seed: of the drawing.
        train: rows of the train split, in the order in which they were drawn.
        validation: rows of the val split, likewise; empty if the data set has none.
        train_digest: over the lines `path<TAB>label` of `train`.
        validation_digest: over those of `validation`.
        digest: over those of both.
    """

    dataset: str
    shots: int
    seed: int
    train: pa.Table
    validation: pa.Table
    train_digest: str
    validation_digest: str
    digest: str


def draw_episode(manifest: Manifest, shots: int, seed: int) -> Episode:
    """Draw `shots` samples a class for training and up to 4 a class for validation.

    Classes are taken in the order in which they first appear in the train (then the val) split.
    A class with fewer samples than asked for gives all it has, in order. The test split is never
    looked at.

    Raises:
        InputError: shots below 1, or a negative seed.
    """
    if shots < 1:
        raise InputError(f"shots is {shots}: it must be at least 1.")
    if seed < 0:
        raise InputError(f"The seed of an episode is {seed}: it must not be negative.")
    rng = random.Random(seed)
    train = _draw(manifest.split("train"), shots, rng)
    validation = _draw(manifest.split("val"), min(shots, VALIDATION_SHOTS), rng)
    train_lines, validation_lines = _lines(train), _lines(validation)
    return Episode(
        dataset=manifest.name,
        shots=shots,
        seed=seed,
        train=train,
        validation=validation,
        train_digest=_digest(train_lines),
        validation_digest=_digest(validation_lines),
        digest=_digest([*train_lines, *validation_lines]),
    )


def _draw(table: pa.Table, shots: int, rng: random.Random) -> pa.Table:
    rows_of: dict[int, list[int]] = {}
    for row, label in enumerate(table.column("label").to_pylist()):
        rows_of.setdefault(label, []).append(row)
    drawn: list[int] = []
    for rows in rows_of.values():
        # A class that is too small draws nothing from the generator: so does CoOp's.
        drawn += rng.sample(rows, shots) if len(rows) >= shots else rows
    return table.take(pa.array(drawn, pa.int64()))


def _lines(table: pa.Table) -> list[str]:
    paths, labels = table.column("path").to_pylist(), table.column("label").to_pylist()
    return [f"{path}\t{label}" for path, label in zip(paths, labels, strict=True)]


def _digest(lines: Sequence[str]) -> str:
    return sha256_hex("\n".join(lines).encode(), length=DIGEST_LENGTH)
