"""A bundle is written beside its place, compared with the predictor, and moved there."""

from __future__ import annotations

import json
import shutil
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from safe_ray import __version__
from safe_ray.errors import InputError
from safe_ray.files import digest_json, sha256_hex, unwritable
from safe_ray.methods.linear import Linear
from safe_ray.prediction.bundle_files import FORMAT_VERSION, RECORD, plain

if TYPE_CHECKING:
    from safe_ray.prediction.predictor import Predictor

LARGEST_DIFFERENCE = 1e-2
"""Of a logit from the predictor's. Kernels sum in other orders, and where that takes a number of a
dense map to the other side of a step of float16, a logit moves by some 1e-5; more than this is a
graph that does something else."""

# More than a graph is traced with.
_IMAGES = 3
_KEPT = ("dataset", "shots", "seed", "templates", "episode", "hyper_parameters", "metrics")


@dataclass(frozen=True)
class Written:
    """What was written.

    Attributes:
        folder: of the bundle.
        sizes: of its files, in bytes, by name.
        difference: the largest of any logit from the predictor's.
        images: of noise, on which it was measured.
    """

    folder: Path
    sizes: dict[str, int]
    difference: float
    images: int


def write_bundle(folder: Path, predictor: Predictor, kind: str) -> Written:
    """Write a predictor as a bundle; a reader sees the whole bundle or none.

    Args:
        folder: a place that `safe_ray.exporting.checks.check_folder` lets pass.
        predictor: on a CPU.
        kind: one of `safe_ray.prediction.bundle_files.FORMATS`.

    Raises:
        InputError: the method cannot be written in this format, a package is missing, the disk is
            full, or what was written does not say what the predictor says.
    """
    size = predictor.preprocessing.size
    generator = torch.Generator().manual_seed(0)
    noise = torch.randint(256, (_IMAGES, 3, size, size), dtype=torch.uint8, generator=generator)
    wanted = predictor.logits(noise)
    with _beside(folder) as temporary:
        run, lines, linear = _write_model(temporary, predictor, kind)
        sizes = _write_record(temporary, predictor, kind, lines, linear)
        difference = float((run(noise) - wanted).abs().max())
        if not difference <= LARGEST_DIFFERENCE:
            raise InputError(
                f"The bundle's logits differ from the predictor's by {difference:.2g}, so that it "
                "was not written: give another --format."
            )
    return Written(folder, sizes, difference, _IMAGES)


def _write_model(
    folder: Path, predictor: Predictor, kind: str
) -> tuple[Callable[[Tensor], Tensor], Sequence[str], Linear | None]:
    """Write the files of a format; return how to run and to load them, and the linear form."""
    if kind == "onnx":
        from safe_ray.exporting import onnx_graph

        return onnx_graph.write(folder, predictor), onnx_graph.HOW_TO_LOAD, None
    if kind == "torch":
        from safe_ray.exporting import torch_program

        return torch_program.write(folder, predictor), torch_program.HOW_TO_LOAD, None
    from safe_ray.exporting import openclip_files

    linear = openclip_files.linear_of(predictor)
    openclip_files.write(folder, predictor)
    return (
        lambda pixels: openclip_files.reader(folder)(pixels),
        openclip_files.how_to_load(predictor.backbone.part, linear.blended),
        linear,
    )


def _write_record(
    folder: Path, predictor: Predictor, kind: str, lines: Sequence[str], linear: Linear | None
) -> dict[str, int]:
    """Write `bundle.json`, with the digests of the files that are there; return all sizes."""
    card = predictor.card
    named = card["backbone"]
    record: dict[str, Any] = {
        "format_version": FORMAT_VERSION,
        "format": kind,
        "made_with": f"safe_ray {__version__}",
        "method": card["method"].get("title") or card["method"]["module"],
        "knobs": dict(predictor.at),
        "class_names": list(predictor.class_names),
        "preprocessing": predictor.preprocessing.to_json(),
        "alpha": None if linear is None else linear.alpha,
        "blended": None if linear is None else linear.blended,
        "alpha_is_open": linear is not None and linear.open,
        "logit_scale": predictor.task.logit_scale,
        "temperature": predictor.temperature,
        "pooling": named.get("pooling"),
        "backbone": {key: named.get(key) for key in ("name", "model", "pretrained", "digest")},
        **{key: card[key] for key in _KEPT if key in card},
        "files": {
            file.name: {"sha256": sha256_hex(file.read_bytes()), "bytes": file.stat().st_size}
            for file in sorted(folder.iterdir())
        },
        "how_to_load": list(lines),
    }
    record = plain(record)
    text = json.dumps({**record, "digest": digest_json(record)}, indent=2, ensure_ascii=False)
    (folder / RECORD).write_text(text + "\n")
    return {file.name: file.stat().st_size for file in sorted(folder.iterdir())}


@contextmanager
def _beside(folder: Path) -> Iterator[Path]:
    """Yield a new folder that takes the place of `folder` when the block ends well."""
    temporary = folder.with_name(f".{folder.name}.{uuid.uuid4().hex[:8]}")
    try:
        temporary.mkdir(parents=True)
        yield temporary
        # Onto an empty folder a folder can be renamed.
        temporary.replace(folder)
    except OSError as error:
        raise unwritable(folder, error, "--out") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
